"""Means and standard deviations of pixels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def channel_statistics(images: Iterable[Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over chunks of (B, C, H, W) uint8.

    From exact integer sums, so that neither the chunks nor the number of threads changes a bit. A channel that never
    varies gets the deviation 1.

    >>> channel_statistics([torch.tensor([0, 4], dtype=torch.uint8).view(2, 1, 1, 1)])
    ([2.0], [2.0])
    """
    count, sums, squares = 0, torch.tensor(0), torch.tensor(0)
    for chunk in images:
        values = chunk.to(torch.int32)
        count += values.numel() // values.shape[1]
        sums = sums + values.sum((0, 2, 3))
        squares = squares + (values * values).sum((0, 2, 3))
    mean, std = [], []
    for total, square in zip(sums.tolist(), squares.tolist(), strict=True):
        mean.append(total / count)
        std.append(((square * count - total**2) / count**2) ** 0.5 or 1.0)
    return mean, std
