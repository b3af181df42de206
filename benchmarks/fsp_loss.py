"""The FSP loss of a whole ResNet, forward and backward, against the formulation that public code uses.

The reference builds the product of every front channel with every back channel, N x m x n x hw, and takes its mean; so do
RepDistiller and others. Written here from the formula, with the same max-pooling and weights, so that both compute the
same number. Either makes the teacher's matrices too, without gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Goal, compare, mebibytes, options, peak, row
from benchmarks.setting import BATCH
from flowstill.knowledge.fsp import fsp_loss, fsp_matrix

FLOWS = [((16, 32), (16, 32)), ((16, 32), (32, 16)), ((32, 16), (64, 8))]  # (channels, side) of front and back
ALPHA = 1 / sum(front[0] * back[0] for front, back in FLOWS)
FASTER, SMALLER = Goal("at least", 20), Goal("at least", 10)


def broadcast(front: Tensor, back: Tensor) -> Tensor:
    """(N, m, n), the mean of the product of every pair of channels."""
    front = F.max_pool2d(front, front.shape[2] // back.shape[2]) if front.shape[2] > back.shape[2] else front
    return (front.flatten(2).unsqueeze(2) * back.flatten(2).unsqueeze(1)).mean(3)


def broadcast_loss(student: list[list[Tensor]], teacher: list[list[Tensor]]) -> Tensor:
    """Eq. 2 over pairs (front, back)."""
    with torch.no_grad():
        targets = [broadcast(front, back) for front, back in teacher]
    losses = [(broadcast(f, b) - t).square().sum((1, 2)).mean() for (f, b), t in zip(student, targets, strict=True)]
    return ALPHA * torch.stack(losses).sum()


def our_loss(student: list[list[Tensor]], teacher: list[list[Tensor]]) -> Tensor:
    with torch.no_grad():
        targets = [fsp_matrix(front, back) for front, back in teacher]
    return fsp_loss([fsp_matrix(front, back) for front, back in student], targets, [ALPHA] * len(targets))


def main() -> None:
    asked = options()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)

    def maps(grad: bool) -> list[list[Tensor]]:
        return [
            [torch.rand(BATCH, c, s, s, generator=generator).to(asked.device).requires_grad_(grad) for c, s in flow]
            for flow in FLOWS
        ]

    student, teacher = maps(True), maps(False)
    inputs = [m for flow in student for m in flow]

    def step(loss: object) -> list[Tensor]:
        value = loss(student, teacher)  # type: ignore[operator]
        return [value.detach(), *torch.autograd.grad(value, inputs)]

    for ours, theirs in zip(step(our_loss), step(broadcast_loss), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-7)
    ways = {"broadcast": lambda: step(broadcast_loss), "ours": lambda: step(our_loss)}
    shapes = f"ResNet-8's maps at 32x32, batch {BATCH}, float32"
    compare("FSP loss, one thread", shapes, ways, FASTER, asked, repeats=3)
    reference, own = (peak(way, asked.device) for way in ways.values())
    row("FSP loss, peak memory", shapes, "broadcast", reference, own, SMALLER, mebibytes)


if __name__ == "__main__":
    main()
