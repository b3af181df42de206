"""The number format and memory layout of a run: chosen by one measurement at its start, then kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from flowstill.features.modules import logits_in
from flowstill.recipes.recipe import Recipe

MOST_IMAGES = 64
LONG_STEP = 0.5  # seconds
Asked = Literal["auto", "32", "bf16"]


@dataclass(frozen=True)
class Precision:
    """Number format and memory layout.

    Attributes:
        dtype: ``32``, or ``bf16`` by autocast, where weights stay float32.
        layout: ``contiguous`` (NCHW) or ``channels_last``.
    """

    dtype: Literal["32", "bf16"] = "32"
    layout: Literal["contiguous", "channels_last"] = "contiguous"

    @property
    def memory_format(self) -> torch.memory_format:
        """torch's name for the layout."""
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

    def __str__(self) -> str:
        return f"{'bf16' if self.dtype == 'bf16' else 'float32'}, {self.layout.replace('_', '-')}"


def choose(
    asked: Asked,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    batch: int,
    device: Any,
    float32: bool = False,
) -> Precision:
    """The precision asked for; for ``auto`` the fastest in a few training steps on random images.

    ``auto`` tries float32 and bf16 on a CPU, only bf16 on a GPU that supports it, each in both layouts; only float32 if
    something in the recipe needs it. The measurement has no side effects, not even on random states.

    Args:
        make: builds the network to measure with.
        shape: of an image, (C, H, W).
        float32: whether ``auto`` must not choose bf16.
    """
    if asked != "auto":
        return Precision(asked)
    device = torch.device(device)
    dtypes: tuple[Literal["32", "bf16"], ...] = ("32", "bf16")
    if float32:
        dtypes = ("32",)
    elif device.type == "cuda":
        dtypes = ("bf16",) if torch.cuda.is_bf16_supported(including_emulation=False) else ("32",)
    candidates = [Precision(dtype, layout) for dtype in dtypes for layout in ("contiguous", "channels_last")]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        network = make().to(device).train()
        # A fraction of the batch is enough to tell them apart, and keeps the start short.
        images = torch.randn(max(2, min(batch, MOST_IMAGES)), *shape, device=device)
        count = 2
        while count < len(images) and _step_time(candidates[0], network, images[:count], repeats=1) < LONG_STEP / 2:
            count = min(2 * count, len(images))
        seconds = {candidate: _step_time(candidate, network, images[:count]) for candidate in candidates}
    return min(seconds, key=lambda candidate: seconds[candidate])


def needing_float32(recipe: Recipe, finished: Collection[str] = ()) -> tuple[str, ...]:
    """The kinds of knowledge, by name, whose gradients bfloat16 spoils, over all jobs still to be trained.

    Args:
        recipe: the recipe.
        finished: jobs that are already trained.

    >>> from flowstill.recipes.load import load_recipe
    >>> needing_float32(load_recipe("cifar10-methods")), needing_float32(load_recipe("svd-table3"))
    (('nst',), ())
    """
    left = (job for name, job in recipe.jobs.items() if not job.weights and name not in finished)
    return tuple(dict.fromkeys(name for job in left for stage in job.stages for name in stage.needs_float32))


def _step_time(precision: Precision, network: nn.Module, images: torch.Tensor, repeats: int = 3) -> float:
    """The shortest of a few forward and backward passes, in seconds."""
    network = network.to(memory_format=precision.memory_format)
    images = images.contiguous(memory_format=precision.memory_format)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision.dtype == "bf16"):
            logits = logits_in(network(images))
        torch.autograd.backward(F.cross_entropy(logits.float(), logits.argmax(1)))
        network.zero_grad()
        if images.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
