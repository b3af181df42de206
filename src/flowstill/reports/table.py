"""The results as a table in a terminal or a text file."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from flowstill.reports.columns import WIDTHS, Width, shown_columns
from flowstill.reports.results import Result, gain_over, results
from flowstill.runs import Run


def results_tables(run: Run) -> list[Table]:
    """The jobs beside the paper and the baseline: the whole table, then narrower ones for narrower terminals."""
    rows = results(run)
    return [_table(rows, width) for width in reversed(WIDTHS)]


def _table(rows: list[Result], width: Width) -> Table:
    columns = shown_columns(rows, width)
    caption = f"gain: percentage points over {gain_over(rows)}" if "gain" in columns else None
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    for name, column in columns.items():
        table.add_column(column.heading, justify=column.align, no_wrap=name != "about")
    for row in rows:
        table.add_row(*(column.cell(row) for column in columns.values()))
    return table


def table_text(run: Run, width: int = 240) -> str:
    """The whole table as plain text.

    Args:
        run: the run.
        width: of a line, in characters.
    """
    console = Console(width=width, no_color=True, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(results_tables(run)[0])
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")
