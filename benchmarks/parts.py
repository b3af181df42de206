"""Where the time of a stage-1 step and of a truncated decomposition goes, beside what memory alone would take.

It prints no ratio of its own, but shows what limits the missed goals. ``python -m benchmarks.parts``. The floor of a part
is the bytes of the maps that it must read and write, over the bandwidth of a plain copy measured here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import Options, Way, interleaved, options
from benchmarks.setting import BATCH, Scene
from benchmarks.svd import some_maps
from flowstill.engine.teacher import needs_of
from flowstill.features.taps import Reading, Tapped
from flowstill.knowledge.decomposition import truncated_svd
from flowstill.transfer.procedures import cyclic


def bandwidth(asked: Options) -> float:
    """Bytes a second that a copy reads and writes, of 64 MiB, which no near cache holds."""
    source = torch.ones(2**24, device=asked.device)
    target = torch.empty_like(source)
    return 2 * 4 * 2**24 / interleaved({"copy": lambda: target.copy_(source)}, 9, asked)["copy"]


def stage_one(asked: Options) -> dict[str, tuple[Way, float]]:
    """Part -> what runs it, and the bytes that it cannot do without."""
    scene = Scene(asked)
    (stage,) = cyclic(["fsp"], steps=100_000, lr=1e-3)
    step = scene.step(stage)
    step()
    learner, teacher, batches = step.students["student"], step.teacher, iter(range(1, 10**6))
    batch = step.feed(0)
    loss = learner.terms[0][0].loss
    taps, _ = needs_of([loss])
    plain = Tapped(scene.teacher, taps, until="taps")
    reading = teacher.read(batch.images, [loss])
    target = teacher.make_target(loss, reading)
    half = torch.autocast(asked.device.type, torch.bfloat16, enabled=scene.precision.dtype == "bf16")

    def student() -> Reading:
        with half:
            found: Reading = learner.module._tapped[0](batch.images)
        return found

    def unfolded() -> None:
        with torch.no_grad(), half:
            plain(batch.images)

    maps = {tap: one.detach().requires_grad_() for tap, one in student().maps.items()}
    leaves = Reading(batch.images, None, maps)

    def flows() -> Tensor:
        with half:
            value: Tensor = loss.compare(leaves, target)
        return value

    def both() -> None:
        last = list(student().maps.values())[-1]
        torch.autograd.backward(last, torch.ones_like(last))

    size = float(sum(one.numel() * one.element_size() for one in maps.values()))
    return {
        "whole step": (step, 0.0),
        "images: crop, flip, normalise": (lambda: step.feed(next(batches)), 0.0),
        "teacher's forward, unfolded": (unfolded, 0.0),
        "teacher's forward, folded": (lambda: teacher.read(batch.images, [loss]), 0.0),
        "teacher's matrices": (lambda: teacher.make_target(loss, reading), size),
        "student's forward and backward": (both, 0.0),
        "student's matrices and their loss": (flows, size),
        "the same with the gradient of its maps": (lambda: torch.autograd.grad(flows(), list(maps.values())), 4 * size),
    }


def decompositions(asked: Options) -> dict[str, tuple[Way, float]]:
    """Of each map of ResNet-8, which is read for the Gram matrix, M v and M z; its gradient is written."""
    parts = {}
    for maps in dict((tuple(one.shape), one) for one in some_maps(asked)).values():
        for rank in (1, 4):
            parts[f"rank {rank}, maps {tuple(maps.shape)}"] = (
                _step(maps, rank),
                4.0 * maps.numel() * maps.element_size(),
            )
    return parts


def _step(maps: Tensor, rank: int) -> Callable[[], object]:
    maps = maps.detach().requires_grad_()
    return lambda: torch.autograd.grad(truncated_svd(maps, rank)[1].square().sum(), maps)


def main() -> None:
    asked = options()
    speed = bandwidth(asked)
    print(f"{torch.get_num_threads()} threads, a copy moves {speed / 1e9:.1f} GB/s; batch {BATCH}\n")
    for title, parts in {"stage 1": stage_one(asked), "truncated SVD": decompositions(asked)}.items():
        seconds = interleaved({name: way for name, (way, _) in parts.items()}, 11, asked)
        print(f"| {title} | ms | floor |\n|---|---|---|")
        for name, (_, size) in parts.items():
            print(f"| {name} | {1e3 * seconds[name]:.1f} | {f'{1e3 * size / speed:.1f}' if size else '-'} |")
        print()


if __name__ == "__main__":
    main()
