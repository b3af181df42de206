"""The numbers that the papers print: ``printed.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import yaml

ACCURACY = "accuracy"


@dataclass(frozen=True)
class PrintedCost:
    """What updates cost.

    Attributes:
        plain: a job whose last stage trains a student alone.
        taught: a job whose only stage is stage 1.
        rows: row -> seconds per 100 updates, and the speed-up; None where the paper prints none.
    """

    plain: str
    taught: str
    rows: dict[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class Printed:
    """A table of a paper.

    Attributes:
        title: the paper and the table's number.
        columns: their names.
        rows: row -> a number for each column, in percent unless the column says otherwise.
        cost: what the table says about the cost of an update.
        controls: rows that the paper does not print, to compare printed rows with.
    """

    title: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]
    cost: PrintedCost | None = None
    controls: tuple[str, ...] = ()


def printed_tables() -> dict[str, Printed]:
    """Read all tables, by name.

    Example:
        >>> printed_tables()["fsp-table3"].rows["fsp"]
        (88.7,)
    """
    text = resources.files("flowstill.papers").joinpath("printed.yaml").read_text(encoding="utf-8")
    tables = {}
    for name, table in yaml.safe_load(text).items():
        rows = {row: tuple(v) if isinstance(v, list) else (v,) for row, v in table["rows"].items()}
        columns = tuple(map(str, table.get("columns", (ACCURACY,))))
        cost = None
        if "cost" in table:
            printed = {row: tuple(pair) for row, pair in table["cost"]["rows"].items()}
            cost = PrintedCost(**{**table["cost"], "rows": printed})
        tables[name] = Printed(table["title"], columns, rows, cost, tuple(table.get("controls", ())))
    return tables
