"""What one step of training sees."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Images on the device, augmented and normalised, with what is known of them.

    images: (B, C, H, W) float32. labels: (B,) int64; -1 where the label is unknown to the task.
    index: (B,) int64 on the CPU, the images' rows in the training set. epoch: (B,) int64 on the CPU, how often the
    stream was gone through before each image (a batch may straddle epochs). step: the step, from 0. steps: how many
    there are. view: (B,) int64 on the CPU, the number of each image's view, below ``Augment.view_count``: one index
    and one view are always the same pixels; None where there is no end of views.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    epoch: Tensor
    step: int = 0
    steps: int = 1
    view: Tensor | None = None
