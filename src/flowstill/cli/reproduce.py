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
    TrustCode,
    whole_number,
)

if TYPE_CHECKING:
    from flowstill.papers.plan import Plan, Work
    from flowstill.papers.table import Table


def reproduce(
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="Packaged recipe (see `flowstill list recipes`) or YAML file.")
    ],
    scale: Scale = 1.0,
    seeds: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Number of times to train each row.")
    ] = 1,
    rows: Annotated[str, typer.Option(metavar="A,B", help="Train only these rows.  [default: all]")] = "",
    data_root: DataRoot = None,
    data: Annotated[str | None, typer.Option(metavar="NAME", help="Data set to use in place of the paper's.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the table.  [default: runs/TABLE]")] = None,
    settings: Settings = None,
    trust_code: TrustCode = False,
    dry_run: DryRun = False,
    device: Device = "auto",
    devices: Devices = 1,
    precision: PrecisionOption = Precision.auto,
) -> None:
    """Reproduce a paper's table: printed numbers, ours, and the difference.

    Trains only what is missing: the same command continues an interrupted table, and other --rows extend it. Teachers
    are trained once and shared by all tables in the same folder.
    """
    from flowstill.cli.training import fail_if_any, try_out
    from flowstill.papers.plan import check_plan, plan_table
    from flowstill.papers.reproduce import COST
    from flowstill.papers.reproduce import reproduce as make
    from flowstill.runs import folder_of

    names = [row.strip() for row in rows.split(",") if row.strip()]
    plan = plan_table(
        table,
        scale=scale,
        seeds=seeds,
        rows=names,
        data_root=data_root,
        data=data,
        set=tuple(settings or ()),
        trust_code=trust_code,
    )
    if dry_run:
        try_out(plan.recipe, device)
        return
    folder = out or folder_of(plan.recipe.name)
    work = check_plan(plan, folder, device=device, precision=precision.value)
    if plan.recipe.jobs:
        _announce(plan, work)
    try:
        result = make(plan, folder, device=device, devices=devices, precision=precision.value, parts=work.parts)
    except KeyboardInterrupt:
        print("interrupted; run the same command to continue", file=sys.stderr)
        raise typer.Exit(130) from None
    except (OSError, MemoryError, RuntimeError) as error:
        error.add_note("Then run the same command to continue.")
        raise
    if result.cells:
        _show(result, folder)
    if plan.cost:
        print((folder / COST).read_text(encoding="utf-8").strip())
    if plan.recipe.figure:
        print(f"drawn: {folder / 'figure.png'}, figure.svg")
    fail_if_any(result.failed)


def _announce(plan: Plan, work: Work) -> None:
    """Print what will be trained, how long it takes on this machine, and how much it writes."""
    from flowstill.files import readable_size
    from flowstill.reports.text import duration

    seeds = len(plan.seeds)
    rows = len(plan.rows)
    head = f"{plan.recipe.name}: {rows} row{'s' if rows > 1 else ''}, {seeds} seed{'s' if seeds > 1 else ''}"
    if not work.left:
        print(f"{head}, all trained already")
        return
    takes = work.estimate
    seconds = sum(count * takes.seconds[name] for name, count in work.left.items())
    updates = sum(count * takes.updates_of[name] for name, count in work.left.items())
    print(
        f"{head}, {updates:,} updates of {plan.recipe.data.batch} images left; about {duration(seconds)} on this machine "
        f"without evaluation, {readable_size(seeds * takes.bytes)} on the disk"
    )
    for name in work.left:
        network = work.networks[name].network
        print(f"  {name}: {network}, {takes.updates_of[name]:,} updates, {duration(takes.seconds[name])}")


def _show(table: Table, folder: Path) -> None:
    """Print the table, the lines below it, and the files."""
    from flowstill.cli.console import plain_table, show_table
    from flowstill.papers.table import legend, lines

    head, *rows = lines(table)
    shown = plain_table(*head)
    for row in rows:
        shown.add_row(*row)
    show_table(shown)
    for note in legend(table):
        print(note)
    paired = ", paired.md, paired.csv" if (folder / "paired.md").exists() else ""
    print(f"written: {folder / 'table.md'}, table.csv, table.png, table.svg{paired}")
