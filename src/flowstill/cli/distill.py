"""``flowstill distill``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowstill.cli.options import (
    DataRoot,
    Device,
    Devices,
    Precision,
    PrecisionOption,
    Scale,
    Seed,
    Settings,
    TrustCode,
    Uses,
    whole_number,
)


def distill(
    teacher: Annotated[str, typer.Option(metavar="NET", help="The large network (see `flowstill list nets`).")],
    student: Annotated[str, typer.Option(metavar="NET", help="The small network.")],
    data: Annotated[str, typer.Option(metavar="NAME", help="The images (see `flowstill list data`).")],
    teacher_weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What the teacher has learned: safetensors, or plain torch.save."),
    ] = None,
    method: Annotated[str, typer.Option(metavar="NAME", help="See `flowstill list methods`.")] = "kd",
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="The run's folder.  [default: runs/METHOD]")] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="Train the student alone as well, for as many updates, to compare.")
    ] = False,
    labels: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="Labelled images for the task; the transfer sees all.  [default: all]",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder, if there is one.")
    ] = False,
    settings: Settings = None,
    scale: Scale = 1.0,
    seed: Seed = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    devices: Devices = 1,
    precision: PrecisionOption = Precision.auto,
    uses: Uses = None,
    trust_code: TrustCode = False,
) -> None:
    """Let a large trained network teach a small one, by a method's name.

    The papers' budget for CIFAR-10 is what --scale 1 means: 64,000 updates of 256 images on the task, and what comes
    before. Augmentation is what is usual for the data set; --set data.augment.flip=true changes it.
    """
    from flowstill.cli.training import train_and_show
    from flowstill.recipes.distillation import distillation

    recipe = distillation(
        teacher,
        student,
        data,
        method,
        teacher_weights=teacher_weights,
        labels=labels,
        alone=alone,
        scale=scale,
        seed=seed or 0,
        data_root=data_root,
        set=tuple(settings or ()),
        uses=tuple(uses or ()),
        trust_code=trust_code,
    )
    train_and_show(
        recipe, out or Path("runs", method), resume=resume, device=device, devices=devices, precision=precision.value
    )
