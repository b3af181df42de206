"""The results as a table in a terminal or a text file."""

from __future__ import annotations

from collections.abc import Callable, Collection

from rich import box
from rich.console import Console
from rich.table import Table

from flowstill.reports.results import Result, baseline, results
from flowstill.reports.text import count, duration, percent, points, short
from flowstill.runs import Run

_COLUMNS: dict[str, Callable[[Result], str]] = {
    "job": lambda row: row.name,
    "network": lambda row: row.network,
    "accuracy %": lambda row: percent(row.accuracy),
    "paper %": lambda row: percent(row.paper),
    "gain": lambda row: points(row.gain),
    "labels": lambda row: "all" if row.labels is None and row.network else count(row.labels),
    "updates": lambda row: count(row.steps),
    "parameters": lambda row: count(row.parameters),
    "MACs": lambda row: short(row.macs),
    "time": lambda row: duration(row.seconds),
    "about": lambda row: row.about,
}
_NARROW = ("job", "network", "accuracy %", "paper %", "gain", "parameters")


def results_tables(run: Run) -> list[Table]:
    """The jobs beside the paper and the baseline: the whole table, then narrower ones for narrower terminals."""
    rows = results(run)
    hidden = {"paper %"} if all(row.paper is None for row in rows) else set()
    hidden |= {"gain"} if all(row.gain is None for row in rows) else set()
    choices = (_COLUMNS, [name for name in _COLUMNS if name != "about"], _NARROW)
    caption = None if "gain" in hidden else f"gain: percentage points over {baseline(run)}"
    return [_table(rows, [name for name in names if name not in hidden], caption) for names in choices]


def _table(rows: list[Result], names: Collection[str], caption: str | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    for name in names:
        text = name in ("job", "network", "about")
        table.add_column(name, justify="left" if text else "right", no_wrap=name != "about")
    for row in rows:
        table.add_row(*(_COLUMNS[name](row) for name in names))
    return table


def table_text(run: Run, width: int = 240) -> str:
    """The whole table as plain text, at most ``width`` characters wide."""
    console = Console(width=width, no_color=True, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(results_tables(run)[0])
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")
