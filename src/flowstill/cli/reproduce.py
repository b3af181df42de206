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
    from flowstill.papers.estimate import Estimate
    from flowstill.papers.reproduce import Plan
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

    Trains what is missing; the same command again goes on where it was stopped, and with other --rows adds those. Teachers
    are trained once and serve every table beside it.
    """
    from flowstill.cli.training import try_out
    from flowstill.papers.reproduce import COST, check_plan, plan_table
    from flowstill.papers.reproduce import reproduce as make

    names = [row.strip() for row in rows.split(",") if row.strip()]
    plan = plan_table(
        table, scale=scale, seeds=seeds, rows=names, data_root=data_root, data=data, set=tuple(settings or ())
    )
    if dry_run:
        try_out(plan.recipe, device)
        return
    folder = out or Path("runs", plan.recipe.name)
    plans, left, takes = check_plan(plan, folder, device=device, precision=precision.value)
    if plan.recipe.jobs:
        _say_beforehand(plan, plans, left, takes)
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


def _say_beforehand(plan: Plan, plans: dict[str, JobPlan], left: dict[str, int], takes: Estimate) -> None:
    """What will be trained, how long it takes here, and how much it writes."""
    from flowstill.reports.text import duration, short

    seeds = len(plan.seeds)
    rows = len(plan.rows)
    head = f"{plan.recipe.name}: {rows} row{'s' if rows > 1 else ''}, {seeds} seed{'s' if seeds > 1 else ''}"
    if not left:
        print(f"{head}, all trained already")
        return
    seconds, updates = (
        sum(count * of[name] for name, count in left.items()) for of in (takes.seconds, takes.updates_of)
    )
    print(
        f"{head}, {updates:,} updates of {plan.recipe.data.batch} images to go; about {duration(seconds)} on this machine "
        f"without evaluation, {short(seeds * takes.bytes)}B on the disk"
    )
    for name in left:
        print(f"  {name}: {plans[name].network}, {takes.updates_of[name]:,} updates, {duration(takes.seconds[name])}")


def _show(table: object, folder: Path) -> None:
    from flowstill.cli.console import plain_table, show_table
    from flowstill.papers.table import Table, legend, lines

    assert isinstance(table, Table)
    head, *rows = lines(table)
    shown = plain_table(*head)
    for row in rows:
        shown.add_row(*row)
    show_table(shown)
    for note in legend(table):
        print(note)
    paired = ", paired.md, paired.csv" if (folder / "paired.md").exists() else ""
    print(f"written: {folder / 'table.md'}, table.csv, table.png, table.svg{paired}")
