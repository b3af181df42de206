"""Printing: rich in a terminal, plain and wide otherwise."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_WIDE = 240  # columns are not cut outside a terminal


def show_table(*tables: Table) -> None:
    """Print the first table that fits the terminal, or else the last; the first if there is no terminal."""
    from rich.console import Console

    if sys.stdout.isatty():
        console, wide = Console(highlight=False), Console(width=_WIDE)
        fitting = (table for table in tables if wide.measure(table).maximum <= console.width)
        console.print(next(fitting, tables[-1]))
        return
    console = Console(width=_WIDE, no_color=True, force_terminal=False, highlight=False)
    with console.capture() as captured:
        console.print(tables[0])
    print("\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n"))


def plain_table(*columns: str) -> Table:
    """An empty table with a rule below its head."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
