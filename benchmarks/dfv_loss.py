"""The loss between distilled feature vectors, forward and backward, against making them.

The reference makes both networks' exp(-(f - g)^2 / beta), N x D_F x D_B x k, and subtracts them; so do the official code and
RepDistiller. Ours makes none of them where they would be larger than the factors of their series.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Goal, compare, options
from benchmarks.setting import BATCH
from flowstill.knowledge.radial import Ends, dfv_loss, rbf

WIDTHS = {"ResNet-8's last section": (32, 64), "VGG's last section": (256, 512)}  # channels of front and back
GOAL = Goal("at least", 20)


def made(student: Ends, teacher: Ends) -> Tensor:
    return (rbf(*teacher) - rbf(*student)).square().sum() / 2


def main() -> None:
    asked = options()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)

    def vectors(width: int) -> Tensor:
        drawn = torch.rand(BATCH, width, 1, generator=generator, dtype=torch.float64)
        return F.normalize(drawn, dim=1).to(asked.device, torch.float32)

    for name, widths in WIDTHS.items():
        student, teacher = (tuple(vectors(width) for width in widths) for _ in range(2))

        def step(
            loss: Callable[[Ends, Ends], Tensor],
            own: Ends = student,
            theirs: Ends = teacher,
            dtype: torch.dtype = torch.float32,
        ) -> list[Tensor]:
            ends = [end.to(dtype).detach().requires_grad_() for end in own]
            value = loss((ends[0], ends[1]), (theirs[0].to(dtype), theirs[1].to(dtype)))
            return [value.detach(), *torch.autograd.grad(value, ends)]

        for ours, theirs in zip(step(dfv_loss), step(made, dtype=torch.float64), strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
        ways = {"made": lambda s=step: s(made), "ours": lambda s=step: s(dfv_loss)}
        shapes = f"{widths[0]} and {widths[1]} channels, rank 1, batch {BATCH}, float32"
        compare(f"loss of DFVs, {name}, one thread", shapes, ways, GOAL, asked, repeats=3, beside=widths[0] <= 64)


if __name__ == "__main__":
    main()
