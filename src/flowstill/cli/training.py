"""Shared by ``train``, ``distill`` and ``demo``: run a recipe, then show the results."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from flowstill.cli.console import show_table

DIVERGED = 3  # exit code: everything possible was trained, but a job has no result

if TYPE_CHECKING:
    from flowstill.recipes.recipe import Recipe
    from flowstill.runs import Run


def train_and_show(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool,
    device: str = "auto",
    devices: int = 1,
    precision: Literal["auto", "32", "bf16"] = "auto",
    strict: bool = False,
) -> None:
    """Train into ``out``, write the report and print the table."""
    from flowstill.api import train
    from flowstill.engine.resuming import has_all
    from flowstill.runs import Run, is_run

    finished_before = resume and is_run(out) and has_all(Run.open(out), recipe)
    try:
        run = train(recipe, out, resume=resume, device=device, devices=devices, precision=precision, strict=strict)
    except KeyboardInterrupt:
        if is_run(out):
            print(f"interrupted; continue with: {_again()}", file=sys.stderr)
        raise typer.Exit(130) from None
    except (OSError, MemoryError, RuntimeError) as error:
        if is_run(out):
            error.add_note(f"Then continue with: {_again()}")
        raise
    if finished_before:
        print(f"{out} is already finished; nothing to do.")
    show_run(run)
    fail_if_any(run.summary.failed)


def fail_if_any(failed: Mapping[str, str]) -> None:
    """Say which jobs diverged and end the command with its own exit code.

    Args:
        failed: job -> why.
    """
    if failed:
        for name, why in failed.items():
            print(f"no result for {name}: {why}", file=sys.stderr)
        raise typer.Exit(DIVERGED)


def try_out(recipe: Recipe, device: str = "auto") -> None:
    """Run two steps of each stage on synthetic images of the right shape, in a temporary folder."""
    from flowstill.api import train
    from flowstill.recipes.dry import dry

    if not recipe.jobs:
        print(f"{recipe.name}: draws a figure; nothing to train")
        return
    with tempfile.TemporaryDirectory() as folder:
        run = train(dry(recipe), Path(folder) / "run", device=device, precision="32", progress=False)
        fail_if_any(run.summary.failed)
    stages = sum(len(job.stages) for job in recipe.jobs.values())
    print(f"{recipe.name}: {len(recipe.jobs)} jobs, {stages} stages, two steps each on synthetic images: all succeeded")


def show_run(run: Run) -> None:
    """Print a run's table, write its report and print its path."""
    from flowstill.reports import results_tables, write_report

    show_table(*results_tables(run))
    print(f"report: {write_report(run)}")


def _again() -> str:
    """The command that continues this one; ``demo`` continues by itself."""
    given = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["flowstill", *given, *(["--resume"] if given[:1] != ["demo"] else [])])
