"""From a device's name to Lightning Fabric."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins import Precision as Plugin

from flowstill.engine.precision import Precision
from flowstill.errors import RecipeError, did_you_mean


def choose_device(name: str, devices: int = 1) -> str:
    """``auto``, ``cpu``, ``cuda`` or ``mps`` -> the one that will be used. Raises: RecipeError."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if there["cuda"] else "cpu"
    if name not in there:
        raise RecipeError(f"--device {name!r} is no device. {did_you_mean(name, ['auto', *there])}")
    if not there[name]:
        here = ", ".join(repr(n) for n, ok in there.items() if ok)
        raise RecipeError(f"--device {name!r}: this machine (or this build of torch) has none. There is {here}.")
    most = {"cpu": os.cpu_count() or 1, "cuda": torch.cuda.device_count(), "mps": 1}[name]
    if not 1 <= devices <= most:
        raise RecipeError(f"--devices {devices}: {name} has {most} here; give a number from 1 to {most}.")
    return name


def make_fabric(device: str, devices: int, precision: Precision) -> Fabric:
    """Fabric on ``devices`` devices; more than one means that many processes (DDP)."""
    log = logging.getLogger("lightning_fabric.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.WARNING)  # it announces the precision, which is ours to say
    try:
        return Fabric(
            accelerator=device,
            devices=devices,
            strategy="ddp_spawn" if devices > 1 else "auto",
            plugins=Autocast(device) if precision.dtype == "bf16" else Plugin(),
        )
    finally:
        log.setLevel(level)


class Autocast(MixedPrecision):
    """bf16 by autocast alone. Fabric's own would also round all that goes into the forward: the losses' targets."""

    def __init__(self, device: str) -> None:
        super().__init__("bf16-mixed", device)

    def convert_input(self, data: Any) -> Any:
        """What it is given."""
        return data
