"""Samples of a categorical distribution that have a gradient: the Gumbel-softmax, with noise that is keyed by its image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from flowstill.data.keyed import Purpose, bits, key_of, uniform


def gumbel_noise(seed: int, step: int, index: Tensor, classes: int, draw: int = 0) -> Tensor:
    """Standard Gumbel noise, -log(-log u) with u uniform in (0, 1), that depends on its key alone.

    Args:
        seed: of the job.
        step: of the stage.
        index: (B,) int64, the images' rows in the training set.
        classes: number of columns.
        draw: number of the draw; each is independent of the others.

    Returns:
        (B, classes) float64, on the CPU.

    >>> rows = torch.tensor([3, 5])
    >>> torch.equal(gumbel_noise(0, 7, rows, 10)[1:], gumbel_noise(0, 7, rows[1:], 10))
    True
    """
    random = bits(key_of(seed, Purpose.GUMBEL), *map(torch.tensor, (step, draw)), index[:, None], torch.arange(classes))
    return -(-(uniform(random) + 2.0**-54).log()).log()


def gumbel_softmax(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """A sample of softmax(logits), relaxed onto the simplex so that it has a gradient.

    Args:
        logits: (B, classes).
        noise: (B, classes), standard Gumbel.
        temperature: above 0; the lower, the closer to one-hot.

    Returns:
        (B, classes), rows sum to 1.
    """
    return F.softmax((logits + noise) / temperature, 1)


def gumbel_temperature(step: int, steps: int, line: tuple[float, float] = (1.0, 0.1)) -> float:
    """The samples' temperature at ``step`` of ``steps``, on a straight line from the first value to the second.

    >>> [round(gumbel_temperature(step, 3), 2) for step in range(3)]
    [1.0, 0.55, 0.1]
    """
    return line[0] + (line[1] - line[0]) * step / max(1, steps - 1)
