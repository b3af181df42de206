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
    Strict,
    Uses,
    whole_number,
)


def distill(
    teacher: Annotated[str, typer.Option(metavar="NET", help="Large network (see `flowstill list nets`).")],
    student: Annotated[str, typer.Option(metavar="NET", help="Small network.")],
    data: Annotated[str, typer.Option(metavar="NAME", help="Data set (see `flowstill list data`).")],
    teacher_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The teacher's trained weights: a checkpoint, its folder, or FILE#KEY for one network of several.",
        ),
    ] = None,
    teacher_is_trained: Annotated[
        bool, typer.Option("--teacher-is-trained", help="The teacher is built with trained weights, by your own code.")
    ] = False,
    method: Annotated[str, typer.Option(metavar="NAME", help="See `flowstill list methods`.")] = "kd",
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="Run folder.  [default: runs/METHOD]")] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="Also train the student alone for the same number of updates.")
    ] = False,
    labels: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="Number of labelled images for the task; the transfer uses all images.  [default: all]",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder, if any.")] = False,
    settings: Settings = None,
    scale: Scale = 1.0,
    seed: Seed = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    devices: Devices = 1,
    precision: PrecisionOption = Precision.auto,
    uses: Uses = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Accepted as in `train`; files that you name here run without it.")
    ] = False,
    strict: Strict = False,
) -> None:
    """Teach a small network with a large trained one, by a named method.

    --scale 1 is the papers' budget for CIFAR-10: 64,000 updates of 256 images on the task, plus the transfer before it.
    Each data set has its usual augmentation; change it with, for example, --set data.augment.flip=true.
    """
    from flowstill.cli.training import train_and_show
    from flowstill.errors import warnings_are_errors
    from flowstill.recipes.distillation import distillation

    with warnings_are_errors(strict):
        recipe = distillation(
            teacher,
            student,
            data,
            method,
            teacher_weights=teacher_weights,
            teacher_is_trained=teacher_is_trained,
            labels=labels,
            alone=alone,
            scale=scale,
            seed=seed or 0,
            data_root=data_root,
            set=tuple(settings or ()),
            uses=tuple(uses or ()),
        )
    train_and_show(
        recipe,
        out or Path("runs", method),
        resume=resume,
        device=device,
        devices=devices,
        precision=precision.value,
        strict=strict,
    )
