"""Truncated singular value decomposition with its exact gradient, against torch's of every map with autograd.

The maps are those of a fresh ResNet-8 on random images. Both are held against each other in float64, where nearly equal
singular values do not yet spoil the gradient of either.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import Goal, Options, compare, options
from benchmarks.setting import BATCH, Scene
from flowstill.engine.precision import Precision
from flowstill.features.taps import Tapped
from flowstill.knowledge.decomposition import truncated_svd

Decomposition = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def whole(maps: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """All singular values and vectors of the paper's M, HW x D, of which the first few are kept.

    Of its transpose it would take up to three times as long.
    """
    _, sigma, vectors = torch.linalg.svd(maps.flatten(2).mT, full_matrices=False)
    return sigma[:, :rank], vectors.mT[:, :, :rank]


def some_maps(asked: Options) -> list[Tensor]:
    """What enters the first section and leaves each of the three."""
    scene = Scene(asked, precision=Precision())
    images = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(asked.device)
    student = Tapped(scene.network("resnet8").train(), ["relu", "layer1", "layer2", "layer3"])
    with torch.no_grad():
        return list(student(images).maps.values())


def step(decompose: Decomposition, maps: list[Tensor], rank: int) -> list[Tensor]:
    """A loss that no sign changes, forward and backward."""
    loss, weight = 0, torch.arange(1.0, rank + 1, device=maps[0].device)
    for one in maps:
        sigma, vectors = decompose(one, rank)
        rising = torch.linspace(0, 1, one.shape[1], device=one.device, dtype=one.dtype)[:, None]
        loss = loss + (rising * weight * vectors.square()).sum() + (weight * sigma).sum()
    return [loss.detach(), *torch.autograd.grad(loss, maps)]


def main() -> None:
    asked = options()
    torch.set_num_threads(1)  # with two the reference takes almost twice as long
    goal = Goal("at least", 50 if asked.device.type == "cuda" else 10)
    maps = [one.requires_grad_() for one in some_maps(asked)]
    few = [one[:4].detach().double().requires_grad_() for one in maps]
    shapes = f"ResNet-8's maps at 32x32, batch {BATCH}, float32"
    for rank in (1, 4):
        for ours, theirs in zip(step(truncated_svd, few, rank), step(whole, few, rank), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
        ways = {
            "torch.linalg.svd": lambda rank=rank: step(whole, maps, rank),
            "ours": lambda rank=rank: step(truncated_svd, maps, rank),
        }
        compare(f"truncated SVD, rank {rank}, exact gradient, one thread", shapes, ways, goal, asked, repeats=3)


if __name__ == "__main__":
    main()
