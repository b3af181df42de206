"""Columns of the results, in the terminal's table and in ``report.html``. Each is one function under its decorator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from flowstill.errors import FlowstillError
from flowstill.reports.results import Result
from flowstill.reports.text import DASH, count, duration, percent, points, short
from flowstill.schema.registry import Registry

Width = Literal["narrow", "medium", "wide"]
WIDTHS: tuple[Width, ...] = ("narrow", "medium", "wide")


@dataclass(frozen=True)
class Column:
    """A column of the results.

    Attributes:
        heading: its head.
        text: a row -> its cell; None, shown as a dash, where nothing is known.
        align: ``left`` for words, ``right`` for numbers.
        width: narrowest of the terminal's tables that shows it.
        optional: leave the column out where all of its cells are None.
        css: a row -> class of its cell in ``report.html``.
    """

    heading: str
    text: Callable[[Result], str | None]
    align: Literal["left", "right"] = "right"
    width: Width = "medium"
    optional: bool = False
    css: Callable[[Result], str] = lambda row: ""

    def cell(self, row: Result) -> str:
        """The text of a row's cell."""
        text = self.text(row)
        return DASH if text is None else text

    def fits(self, width: Width) -> bool:
        """Whether a table of this width shows the column."""
        return WIDTHS.index(self.width) <= WIDTHS.index(width)


COLUMNS: Registry[Column] = Registry("column", error=FlowstillError)
Text = Callable[[Result], str | None]


def register_column(
    name: str,
    heading: str = "",
    *,
    align: Literal["left", "right"] = "right",
    width: Width = "medium",
    optional: bool = False,
    css: Callable[[Result], str] = lambda row: "",
) -> Callable[[Text], Text]:
    """Add a column to every table and page of results: the decorated function gives a row's text, or None.

    Args:
        name: what the column is registered as.
        heading: its head; ``name`` by default.
        align: ``left`` for words, ``right`` for numbers.
        width: ``narrow`` shows it in every table of the terminal, ``medium`` in all but the narrowest, ``wide`` in the
            widest only. The page shows all columns.
        optional: leave the column out where all of its cells are None.
        css: a row -> class of its cell in ``report.html``.

    Raises:
        FlowstillError: the name is taken.

    Example:
        >>> @register_column("images", "images per parameter", optional=True)
        ... def images(row):
        ...     return f"{row.labels / row.parameters:.3f}" if row.labels and row.parameters else None
        >>> COLUMNS["images"].cell(Result("student", labels=50, parameters=1000))
        '0.050'
    """

    def register(text: Text) -> Text:
        COLUMNS.add(name, Column(heading or name, text, align, width, optional, css), text.__module__)
        return text

    return register


def shown_columns(rows: Sequence[Result], width: Width = "wide") -> dict[str, Column]:
    """The columns that a table of these rows shows, by name."""
    return {
        name: column
        for name, column in COLUMNS.items()
        if column.fits(width) and not (column.optional and all(column.text(row) is None for row in rows))
    }


@register_column("job", align="left", width="narrow")
def _job(row: Result) -> str:
    return row.name


@register_column("network", align="left", width="narrow")
def _network(row: Result) -> str:
    return row.network


@register_column("accuracy", "accuracy %", width="narrow", css=lambda row: "main")
def _accuracy(row: Result) -> str:
    return row.missing or percent(row.accuracy)


@register_column("paper", "paper %", width="narrow", optional=True)
def _paper(row: Result) -> str | None:
    return None if row.paper is None else percent(row.paper)


def _direction(row: Result) -> str:
    return "" if row.gain is None else "up" if row.gain >= 0 else "down"


@register_column("gain", width="narrow", optional=True, css=_direction)
def _gain(row: Result) -> str | None:
    if row.missing and row.teacher and row.baseline:
        return row.missing
    return None if row.gain is None else points(row.gain)


@register_column("labels")
def _labels(row: Result) -> str:
    return "all" if row.labels is None and row.network else count(row.labels)


@register_column("updates")
def _updates(row: Result) -> str:
    return count(row.steps)


@register_column("parameters", width="narrow")
def _parameters(row: Result) -> str:
    return count(row.parameters)


@register_column("macs", "MACs")
def _macs(row: Result) -> str:
    return short(row.macs)


@register_column("time")
def _time(row: Result) -> str:
    return duration(row.seconds)


@register_column("about", align="left", width="wide")
def _about(row: Result) -> str:
    return row.about
