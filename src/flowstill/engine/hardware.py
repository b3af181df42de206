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
from flowstill.errors import RecipeError, did_you_mean, option

ALIASES = {"gpu": "cuda", "nvidia": "cuda", "metal": "mps", "apple": "mps"}  # what people type -> torch's name


def choose_device(name: str, devices: int = 1) -> str:
    """Resolve and check ``--device`` and ``--devices``.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: number of processes, one device each.

    Returns:
        The device to use: ``cpu``, ``cuda`` or ``mps``.

    Raises:
        RecipeError: unknown name, no such device on this machine, or fewer devices than asked for.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if there["cuda"] else "cpu"
    if name not in there:
        choices = ["auto", *there]
        hint = f"Did you mean {ALIASES[name.lower()]!r}?" if name.lower() in ALIASES else did_you_mean(name, choices)
        raise RecipeError(f"{option('device')}: expected {', '.join(choices)}. Received: {name!r}. {hint}")
    if not there[name]:
        available = ", ".join(repr(n) for n, ok in there.items() if ok)
        raise RecipeError(
            f"{option('device', name)}: not available on this machine or in this build of torch. Use {available}."
        )
    most = {"cpu": os.cpu_count() or 1, "cuda": torch.cuda.device_count(), "mps": 1}[name]
    if not 1 <= devices <= most:
        raise RecipeError(f"{option('devices', devices)}: expected 1 to {most}, the number of {name} devices here.")
    return name


def make_fabric(device: str, devices: int, precision: Precision) -> Fabric:
    """Fabric on ``devices`` devices, one process each (DDP)."""
    log = logging.getLogger("lightning_fabric.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.WARNING)  # Fabric announces the precision, but flowstill reports it itself
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
    """bf16 by autocast alone. Fabric's own class also rounds every input of the forward, and so the losses' targets."""

    def __init__(self, device: str) -> None:
        super().__init__("bf16-mixed", device)

    def convert_input(self, data: Any) -> Any:
        """Return the input unchanged."""
        return data
