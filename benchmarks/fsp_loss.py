"""The FSP loss of a whole ResNet, forward and backward, against the formulation that public code uses.

The reference builds the product of every front channel with every back channel, N x m x n x hw, and takes its mean; so do
RepDistiller and others. Written here from the formula, with the same max-pooling, so that both compute the same number.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import report
from flowstill import fsp_matrix

SHAPES = [((16, 32), (16, 32)), ((16, 32), (32, 16)), ((32, 16), (64, 8))]  # (channels, side) of front and back


def broadcast(front: Tensor, back: Tensor) -> Tensor:
    front = F.max_pool2d(front, front.shape[2] // back.shape[2]) if front.shape[2] > back.shape[2] else front
    return (front.flatten(2).unsqueeze(2) * back.flatten(2).unsqueeze(1)).mean(3)


def main(batch: int = 256) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    maps = [[torch.rand(batch, c, s, s, generator=generator).requires_grad_() for c, s in flow] for flow in SHAPES]
    targets = [fsp_matrix(front, back).detach() + 0.1 for front, back in maps]

    def step(matrix: object) -> Tensor:
        losses = [
            (matrix(front, back) - t).square().sum((1, 2)).mean()
            for (front, back), t in zip(maps, targets, strict=True)
        ]
        loss = torch.stack(losses).sum()
        torch.autograd.grad(loss, [m for flow in maps for m in flow])
        return loss.detach()

    torch.testing.assert_close(step(fsp_matrix), step(broadcast), rtol=1e-3, atol=1e-3)
    report("FSP loss, forward and backward, one thread", f"ResNet-8 maps at 32x32, batch {batch}",
           {"broadcast": lambda: step(broadcast), "ours": lambda: step(fsp_matrix)}, "ours", repeats=3)  # fmt: skip


if __name__ == "__main__":
    main()
