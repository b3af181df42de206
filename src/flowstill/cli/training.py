"""What ``train`` and ``demo`` have in common: run a recipe, then show what came out."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from flowstill.cli.console import show_table

if TYPE_CHECKING:
    from flowstill.recipes.schema import Recipe
    from flowstill.runs import Run


def train_and_show(
    recipe: Recipe, out: Path, *, resume: bool, device: str = "auto", devices: int = 1,
    precision: Literal["auto", "32", "bf16"] = "auto",
) -> None:  # fmt: skip
    """Train into ``out``, write the report and print the table."""
    from flowstill.engine import train
    from flowstill.runs import Run, is_run

    finished_before = resume and is_run(out) and Run.open(out).finished
    try:
        run = train(recipe, out, resume=resume, device=device, devices=devices, precision=precision)
    except KeyboardInterrupt:
        if is_run(out):
            print(f"stopped; go on with: {_again()}", file=sys.stderr)
        raise typer.Exit(130) from None
    if finished_before:
        print(f"{out} is finished already; nothing was left to do.")
    show_run(run)


def show_run(run: Run) -> None:
    """Print a run's table and where its report is, which is written anew."""
    from flowstill.reports import results_tables, write_report

    show_table(*results_tables(run))
    print(f"report: {write_report(run)}")


def _again() -> str:
    """The command that goes on with what this one began; ``demo`` does so by itself."""
    given = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["flowstill", *given, *(["--resume"] if given[:1] != ["demo"] else [])])
