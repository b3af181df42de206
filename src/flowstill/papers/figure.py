"""A table as a picture: each row's measured accuracy beside the paper's."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

from flowstill.papers.table import Cell, Table

SHOWN = ("accuracy", "average", "top1_error")
MEASURED, PAPER = "#3b82c4", "#d9771f"


def shown(table: Table) -> list[Cell]:
    """The cell to show for each row with numbers: its accuracy, or else its last number."""
    names = [*(name for name in SHOWN if name in table.columns), *reversed(table.columns)]
    found = (
        next((cell for name in names if (cell := table.at(row, name)).measured or cell.diverged), None)
        for row in table.rows
    )
    return [cell for cell in found if cell]


def _label(cell: Cell) -> str:
    """The row's name, with the number of seeds that diverged."""
    return f"{cell.row} ({cell.diverged} diverged)" if cell.diverged else cell.row


def write_figure(table: Table, folder: Path) -> list[Path]:
    """Draw ``table.png`` and ``table.svg``: a dot for each seed, their mean, and the printed number.

    Returns:
        The files; none if the table has no numbers.
    """
    cells = shown(table)
    if not any(cell.measured for cell in cells):
        return []
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.2 + 0.4 * len(cells)), layout="constrained")
    axes = figure.subplots()
    printed = [cell for cell in cells if cell.printed is not None]
    for place, cell in enumerate(reversed(cells)):
        axes.plot(
            cell.measured,
            [place] * len(cell.measured),
            "o",
            color=MEASURED,
            alpha=0.45,
            markersize=5,
            markeredgewidth=0,
        )
        axes.plot(
            [math.nan if cell.mean is None else cell.mean],
            [place],
            "|",
            color=MEASURED,
            markersize=16,
            markeredgewidth=2.5,
            label="ours, mean of seeds" if place == 0 else None,
        )
        if cell.printed is not None:
            axes.plot(
                [cell.printed], [place], "D", color=PAPER, markersize=6, label="paper" if cell is printed[0] else None
            )
    axes.set_yticks(range(len(cells)), [_label(cell) for cell in reversed(cells)])
    axes.set_ylim(-0.6, len(cells) - 0.4)
    columns = {cell.column for cell in cells}
    axes.set_xlabel(f"{columns.pop().replace('_', ' ') if len(columns) == 1 else 'accuracy'}, %")
    axes.set_title(textwrap.fill(f"{table.name}: {table.title}", 75), fontsize=10, loc="left")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    written = [folder / "table.png", folder / "table.svg"]
    import matplotlib

    for path in written:
        with matplotlib.rc_context({"svg.hashsalt": path.stem}):  # the same bytes for the same numbers
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return written
