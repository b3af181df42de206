"""The images and labels of one training step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Images on the device, augmented and normalised, with their labels and rows.

    Attributes:
        images: (B, C, H, W) float32.
        labels: (B,) int64; -1 if the label is hidden from the task.
        index: (B,) int64 on the CPU, rows of the training set.
        epoch: (B,) int64 on the CPU, complete passes over the stream before each image (a batch may straddle epochs).
        step: number of the step, from 0.
        steps: number of steps in all.
        view: (B,) int64 on the CPU, number of each image's view, below ``Augment.view_count``: the same index and view
            always give the same pixels. None if views are unbounded.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    epoch: Tensor
    step: int = 0
    steps: int = 1
    view: Tensor | None = None
