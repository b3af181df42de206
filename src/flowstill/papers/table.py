"""A table of a paper with measured numbers: printed number, mean and spread over seeds, difference."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flowstill.files import atomic_write
from flowstill.papers.printed import ACCURACY, Printed

UPDATES_TO = tuple(f"updates_to_{share}" for share in ("80", "90", "95", "own_80", "own_90", "own_95"))
WHOLE = {"total_iterations", *UPDATES_TO}
COUNTS = {"params_million", "flops_million", "total_iterations"}  # the same for every seed


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        row: its row.
        column: its column.
        printed: the paper's number; None if it prints none.
        measured: our numbers, one per seed.
        diverged: number of seeds without a number because a job diverged.
    """

    row: str
    column: str
    printed: float | None
    measured: tuple[float, ...]
    diverged: int = 0

    @property
    def mean(self) -> float | None:
        """Mean over seeds; None if nothing was measured."""
        return statistics.fmean(self.measured) if self.measured else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for fewer than two."""
        return statistics.stdev(self.measured) if len(self.measured) > 1 and self.column not in COUNTS else None

    @property
    def difference(self) -> float | None:
        """Mean minus the printed number."""
        return None if self.mean is None or self.printed is None else self.mean - self.printed


@dataclass(frozen=True)
class Table:
    """A table with printed and measured numbers.

    Attributes:
        name: its name.
        title: its title.
        cells: row by row.
        left_open: row -> what in it was reconstructed.
        notes: sentences below the table.
        failed: job and seed -> why it has no result, where something diverged.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    left_open: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(dict.fromkeys(cell.column for cell in self.cells))

    def at(self, row: str, column: str) -> Cell:
        """One cell."""
        return next(cell for cell in self.cells if (cell.row, cell.column) == (row, column))


def lines(table: Table) -> list[tuple[str, ...]]:
    """The table's text: a head, then a line for each row.

    A single column is shown as printed number, measured number and difference; several columns get one cell each.
    """
    if len(table.columns) == 1:
        (column,) = table.columns
        found: list[tuple[str, ...]] = [("row", "paper", "ours", "difference")]
        for row in table.rows:
            one = table.at(row, column)
            found.append(
                (_row(table, row), number(one.printed, column), mean_and_spread(one), signed(one.difference, column))
            )
        return found
    found = [("row", *table.columns)]
    for row in table.rows:
        cells = [table.at(row, column) for column in table.columns]
        found.append((_row(table, row), *(_both(one) for one in cells)))
    return found


def _row(table: Table, row: str) -> str:
    return f"{row} *" if table.left_open.get(row) else row


def _both(one: Cell) -> str:
    printed = "" if one.printed is None else f" ({number(one.printed, one.column)})"
    return f"{mean_and_spread(one)}{printed}"


def mean_and_spread(one: Cell) -> str:
    """Format mean and spread.

    Example:
        >>> mean_and_spread(Cell("fsp", "accuracy", 88.7, (60.0, 61.0))), mean_and_spread(Cell("fsp", "accuracy", 88.7, ()))
        ('60.50 ± 0.71', '–')
    """
    if one.diverged and not one.measured:
        return "diverged"
    lost = f" ({one.diverged} diverged)" if one.diverged else ""
    spread = "" if one.spread is None else f" ± {one.spread:.2f}"
    return f"{number(one.mean, one.column)}{spread}{lost}"


def number(value: float | None, column: str) -> str:
    """Format a number with two decimals, a count of updates without; a dash for None."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.0f}" if column in WHOLE else f"{value:.2f}"


def signed(value: float | None, column: str) -> str:
    """Format as ``number`` does, with the sign."""
    return "–" if value is None else f"{value:+,.0f}" if column in WHOLE else f"{value:+.2f}"


def legend(table: Table) -> list[str]:
    """The lines below the table."""
    text = [] if len(table.columns) == 1 else ["Ours, with the paper's in parentheses."]
    points = dict.fromkeys(point for row in table.rows for point in table.left_open.get(row, ()))
    if points:
        text.append("* depends on a reconstruction of what the papers leave open:")
    for point in points:
        text.append(f"- {point} ({', '.join(row for row in table.rows if point in table.left_open.get(row, ()))})")
    return [*text, *table.notes, *(f"No result for {name}: {why}" for name, why in table.failed.items())]


def markdown(table: Table) -> str:
    """The table as Markdown, with its title and notes."""
    text = [f"# {table.name}: {table.title}", "", markdown_table(lines(table)), ""]
    return "\n".join([*text, *(f"{note}\n" for note in legend(table))])


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A head and the lines below it, as Markdown."""
    head, *rows = lines
    return "\n".join((_line(head), _line("---" for _ in head), *map(_line, rows)))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def comma_separated(table: Table) -> str:
    """The table as CSV, a line per cell: row, column, paper, mean, spread, difference, then the number of each seed.

    After them comes ``diverged`` for each seed in which a job diverged.
    """
    file = io.StringIO()
    seeds = max((len(cell.measured) + cell.diverged for cell in table.cells), default=0)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "column", "paper", "mean", "spread", "difference", *(f"seed_{n}" for n in range(seeds))])
    for cell in table.cells:
        numbers: Sequence[float | None] = (cell.printed, cell.mean, cell.spread, cell.difference, *cell.measured)
        texts = ["" if value is None else repr(round(value, 6)) for value in numbers]
        writer.writerow([cell.row, cell.column, *texts, *["diverged"] * cell.diverged])
    return file.getvalue()


def write_table(table: Table, out: Path, name: str = "table") -> None:
    """Write ``NAME.md`` and ``NAME.csv`` into ``out``, which is created if needed."""
    out.mkdir(parents=True, exist_ok=True)
    for ending, text in (("md", markdown(table)), ("csv", comma_separated(table))):
        atomic_write(out / f"{name}.{ending}", text.encode())


def printed_cell(printed: Printed | None, row: str, column: str) -> float | None:
    """The paper's number in a cell. For the variant ``ROW_COLUMN`` it is the number in that row and column.

    Example:
        >>> from flowstill.papers.printed import printed_tables
        >>> printed_cell(printed_tables()["svd-table4"], "vgg_student_pool_2", "accuracy")
        66.33
    """
    if printed is None:
        return None
    for name, values in printed.rows.items():
        for head, value in zip(printed.columns, values, strict=True):
            if (name, head) == (row, column) or (f"{name}_{head}", ACCURACY) == (row, column):
                return value
    return None
