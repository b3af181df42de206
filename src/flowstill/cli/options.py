"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Precision(StrEnum):
    """The choices of ``--precision``."""

    auto = "auto"
    float32 = "32"
    bf16 = "bf16"


def number(given: object) -> float:
    """Read a number; the error repeats what was written."""
    try:
        return float(str(given))
    except ValueError:
        raise typer.BadParameter(f"expected a number. Received: {str(given)!r}.") from None


def whole_number(given: object) -> int:
    """Read a whole number; the error repeats what was written."""
    try:
        return int(str(given))
    except ValueError:
        raise typer.BadParameter(f"expected a whole number. Received: {str(given)!r}.") from None


RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Packaged recipe (see `flowstill list recipes`) or YAML file.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, from `train --out`.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a value of the recipe, such as student.seed=5. Repeatable.",
    ),
]
Scale = Annotated[
    float,
    typer.Option(parser=number, metavar="FACTOR", help="Multiply the length of all schedules: 0.02 for a short trial."),
]
Seed = Annotated[
    int | None,
    typer.Option(parser=whole_number, metavar="N", help="Random seed of the run.  [default: the recipe's]"),
]
DataRoot = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="Folder of the data sets, such as FOLDER/cifar10/train.parquet.")
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Run the Python files that the recipe or the run names. Those that you type run anyway.",
    ),
]
Uses = Annotated[
    list[str] | None,
    typer.Option(
        "--uses", metavar="FILE", help="Import this Python file or module first: it may add methods. Repeatable."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Run two steps of each stage on synthetic images, and keep nothing.")
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")]
Devices = Annotated[
    int, typer.Option(parser=whole_number, metavar="N", help="Number of devices that share each batch.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse to train if something looks wrong, instead of warning.")]
PrecisionOption = Annotated[
    Precision, typer.Option("--precision", help="auto measures once which is fastest; 32 where a knowledge needs it.")
]
