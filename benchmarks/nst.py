"""The NST loss, forward and backward, against the formulation that public code uses.

The reference multiplies every channel with every other, N x C x C x hw, sums and squares: so do RepDistiller and others.
They compare all sections; the paper's way is the last alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Goal, compare, options
from benchmarks.setting import BATCH
from flowstill.knowledge.nst import nst_loss

SHAPES = [(16, 32), (32, 16), (64, 8)]  # channels and side of what leaves each section
GOAL = Goal("at least", 20)


def kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a.unsqueeze(1) * b.unsqueeze(2)).sum(-1).square().mean()


def broadcast(student: Tensor, teacher: Tensor) -> Tensor:
    """MMD^2 under the kernel (x . y)^2, mean over the batch."""
    s, t = (F.normalize(maps.flatten(2), dim=2) for maps in (student, teacher))
    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def main() -> None:
    asked = options()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        [torch.rand(BATCH, c, s, s, generator=generator).to(asked.device) for c, s in SHAPES] for _ in range(2)
    )

    def step(loss: Callable[[Tensor, Tensor], Tensor], sections: slice) -> list[Tensor]:
        maps = [one.requires_grad_() for one in student[sections]]
        value = torch.stack([loss(s, t) for s, t in zip(maps, teacher[sections], strict=True)]).sum()
        return [value.detach(), *torch.autograd.grad(value, maps)]

    for name, sections in {"last section": slice(2, 3), "all sections": slice(3)}.items():
        for ours, theirs in zip(step(nst_loss, sections), step(broadcast, sections), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
        ways = {"broadcast": lambda s=sections: step(broadcast, s), "ours": lambda s=sections: step(nst_loss, s)}
        shapes = f"ResNet-8's maps at 32x32, batch {BATCH}, float32"
        compare(f"NST loss, {name}, one thread", shapes, ways, GOAL, asked, repeats=3)


if __name__ == "__main__":
    main()
