"""``flowstill train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowstill.cli.options import (
    DataRoot,
    Device,
    Devices,
    DryRun,
    Precision,
    PrecisionOption,
    RecipeName,
    Scale,
    Seed,
    Settings,
    Strict,
    TrustCode,
)


def train(
    recipe: RecipeName,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="Run folder.  [default: runs/RECIPE]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder, if any.")] = False,
    settings: Settings = None,
    scale: Scale = 1.0,
    seed: Seed = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    devices: Devices = 1,
    precision: PrecisionOption = Precision.auto,
    trust_code: TrustCode = False,
    strict: Strict = False,
    dry_run: DryRun = False,
) -> None:
    """Run a recipe's jobs and keep the results in a run folder.

    --resume continues a killed run, with the same numbers as if it had not been interrupted.
    """
    from flowstill.cli.training import train_and_show, try_out
    from flowstill.recipes.load import load_recipe
    from flowstill.runs import folder_of

    loaded = load_recipe(
        recipe, set=tuple(settings or ()), scale=scale, seed=seed, data_root=data_root, trust_code=trust_code
    )
    if dry_run:
        try_out(loaded, device)
        return
    train_and_show(
        loaded,
        out or folder_of(loaded.name),
        resume=resume,
        device=device,
        devices=devices,
        precision=precision.value,
        strict=strict,
    )
