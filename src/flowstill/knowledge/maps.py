"""What several losses do with feature maps before they compare them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from flowstill.data.batch import Batch
from flowstill.features.taps import Reading, Tap
from flowstill.transfer.knowledge import Loss


def precise(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it already is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def same_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps (B, C, H, W) at the smaller height and width, by average pooling."""
    size = (min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3]))
    pooled = [maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size) for maps in (one, other)]
    return pooled[0], pooled[1]


def maps_at(taps: Sequence[Tap], reading: Reading) -> tuple[Tensor, ...]:
    """The maps at these taps, without their graph."""
    return tuple(reading[tap].detach() for tap in taps)


class MapsLoss(Loss):
    """``factor`` times the sum, over pairs of taps, of ``compare_maps``. The target is the teacher's maps.

    Args:
        teacher_taps: where the teacher is read, such as the ends of its sections.
        student_taps: where the student is read, one for each of the teacher's.
        factor: of the sum.
    """

    storable = True

    def __init__(
        self, teacher_taps: Iterable[Tap | str], student_taps: Iterable[Tap | str], factor: float = 1.0
    ) -> None:
        super().__init__()
        self.teacher_taps, self.student_taps = tuple(map(Tap.parse, teacher_taps)), tuple(map(Tap.parse, student_taps))
        self.factor = factor

    def compare_maps(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one pair of maps, (B, C, H, W) and (B, D, h, w): a scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define the method compare_maps(self, student, teacher).")

    def target(self, teacher: Reading | None, batch: Batch | None = None) -> tuple[Tensor, ...]:
        """The teacher's maps."""
        return maps_at(self.teacher_taps, self.require_teacher(teacher))

    def forward(self, student: Reading, target: Sequence[Tensor]) -> Tensor:
        """A float32 scalar, at least 0 up to rounding."""
        losses = [self.compare_maps(student[tap], maps) for tap, maps in zip(self.student_taps, target, strict=True)]
        return self.factor * torch.stack(losses).sum()
