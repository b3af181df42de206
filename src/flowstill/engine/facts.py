"""What a run records besides its recipe: data, device, precision, versions."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric

from flowstill.engine.precision import Precision
from flowstill.recipes.recipe import Recipe
from flowstill.runs import Summary

if TYPE_CHECKING:
    from flowstill.data import ImageData


def run_facts(
    precision: Precision, device: str, devices: int, data: ImageData, float32: Sequence[str] = ()
) -> dict[str, Any]:
    """What a resumed run must know and the recipe does not say.

    Args:
        precision: of the run.
        device: the device's name.
        devices: number of processes.
        data: the images.
        float32: names of the kinds of knowledge for which ``auto`` chose float32.
    """
    return {
        "precision": {"dtype": precision.dtype, "layout": precision.layout},
        **({"float32_for": list(float32)} if float32 else {}),
        "device": device,
        "devices": devices,
        "threads": torch.get_num_threads(),
        "data": {
            "channels": data.shape[0],
            "size": list(data.shape[1:]),
            "classes": len(data.classes),
            "class_names": list(data.classes),
            "fingerprint": data.fingerprint,
        },
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a run's numbers."""
    packages = ("flowstill", "torch", "torchvision", "lightning-fabric", "timm", "datasets", "numpy")
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    return {"python": platform.python_version(), **{name: installed[name] for name in packages if name in installed}}


def new_summary(recipe: Recipe, precision: Precision, fabric: Fabric) -> Summary:
    """The summary of a run in which nothing is finished yet."""
    return Summary(
        recipe=recipe.name,
        seed=recipe.seed,
        device=str(fabric.device.type),
        devices=fabric.world_size,
        precision={"dtype": precision.dtype, "layout": precision.layout},
        versions=versions(),
        command=shlex.join(["flowstill", *sys.argv[1:]]) if Path(sys.argv[0]).name == "flowstill" else "",
    )
