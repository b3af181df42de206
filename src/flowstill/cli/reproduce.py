"""``flowstill reproduce``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowstill.cli.options import (
    DataRoot,
    Device,
    Devices,
    DryRun,
    Precision,
    PrecisionOption,
    Scale,
    Settings,
    whole_number,
)

if TYPE_CHECKING:
    from flowstill.experiments.estimate import Estimate
    from flowstill.experiments.reproduce import Plan
    from flowstill.recipes.check import JobPlan


def reproduce(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="A packaged recipe (see `flowstill list recipes`).")],
    scale: Scale = 1.0,
    seeds: Annotated[int, typer.Option(parser=whole_number, metavar="N", help="Train each row so many times.")] = 1,
    rows: Annotated[str, typer.Option(metavar="A,B", help="These rows only.  [default: all]")] = "",
    data_root: DataRoot = None,
    data: Annotated[str | None, typer.Option(metavar="NAME", help="Images that stand in for the paper's.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where all goes.  [default: runs/TABLE]")] = None,
    settings: Settings = None,
    dry_run: DryRun = False,
    device: Device = "auto",
    devices: Devices = 1,
    precision: PrecisionOption = Precision.auto,
) -> None:
    """Make a paper's table: the printed numbers, ours, and the difference.

    Trains what is missing; the same command again goes on where it was stopped. Teachers are trained once and serve
    every table beside it.
    """
    from flowstill.cli.training import try_out
    from flowstill.experiments.reproduce import COST, check_plan, plan_table
    from flowstill.experiments.reproduce import reproduce as make

    names = [row.strip() for row in rows.split(",") if row.strip()]
    plan = plan_table(
        table, scale=scale, seeds=seeds, rows=names, data_root=data_root, data=data, set=tuple(settings or ())
    )
    if dry_run:
        try_out(plan.recipe, device)
        return
    plans, takes = check_plan(plan, device=device, precision=precision.value)
    if plan.recipe.jobs:
        _say_beforehand(plan, plans, takes)
    folder = out or Path("runs", plan.recipe.name)
    try:
        made = make(plan, folder, device=device, devices=devices, precision=precision.value)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    if made.cells:
        _show(made, folder)
    if plan.cost:
        print((folder / COST).read_text(encoding="utf-8").strip())
    if plan.recipe.figure:
        print(f"drawn: {folder / 'figure.png'}, figure.svg")


def _say_beforehand(plan: Plan, plans: dict[str, JobPlan], takes: Estimate) -> None:
    """What will be trained, how long it takes here, and how much it writes."""
    from flowstill.reports.text import duration, short

    once = [name for name in plan.recipe.jobs if name in plan.teachers]
    each = [name for name in plan.recipe.jobs if name not in once]
    seeds = len(plan.seeds)
    seconds = sum(takes.seconds[name] for name in once) + seeds * sum(takes.seconds[name] for name in each)
    updates = sum(takes.updates_of[name] for name in once) + seeds * sum(takes.updates_of[name] for name in each)
    print(f"{plan.recipe.name}: {len(plan.rows)} rows, {seeds} seed{'s' if seeds > 1 else ''}, {updates:,} updates of "
          f"{plan.recipe.data.batch} images; about {duration(seconds)} on this machine without evaluation, "
          f"{short(seeds * takes.bytes)}B on the disk")  # fmt: skip
    for name in (*once, *each):
        print(f"  {name}: {plans[name].network}, {takes.updates_of[name]:,} updates, {duration(takes.seconds[name])}")


def _show(table: object, folder: Path) -> None:
    from flowstill.cli.console import plain_table, show_table
    from flowstill.experiments.table import Table, legend, lines

    assert isinstance(table, Table)
    head, *rows = lines(table)
    shown = plain_table(*head)
    for row in rows:
        shown.add_row(*row)
    show_table(shown)
    for note in legend(table):
        print(note)
    print(f"written: {folder / 'table.md'}, table.csv, table.png, table.svg")
