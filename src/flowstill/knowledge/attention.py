"""Attention transfer (Zagoruyko and Komodakis 2017): where in the image a section looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from flowstill.data.batch import Batch
from flowstill.features.sections import Pairs
from flowstill.features.taps import Reading, Tap
from flowstill.schema import specification
from flowstill.transfer.knowledge import Knowledge, Loss, Setting, register
from flowstill.transfer.methods import ANY_CHANNELS, added, register_method
from flowstill.transfer.stages import Stage


def attention_map(maps: Tensor) -> Tensor:
    """q[b] = vec(sum_c F[b, c]^2), L2-normalised: one number for each position (Eq. 1 with p = 2).

    Args: maps (B, C, H, W). Returns: (B, H W), float32 or better; all zeros where the maps are.
    """
    maps = maps if maps.element_size() == 8 else maps.float()
    return F.normalize(maps.square().sum(1).flatten(1), dim=1)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """||q_S - q_T||^2 over the number of positions, mean over the batch; the larger map average-pooled to the smaller's.

    The paper sets beta to 10^3 over the number of elements in the attention map, and its code takes the mean over them.

    Args: student (B, C, H, W), teacher (B, D, h, w). Returns: a scalar in [0, 2 / positions].
    """
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    student, teacher = (
        F.adaptive_avg_pool2d(maps, size) if maps.shape[2:] != size else maps for maps in (student, teacher)
    )
    return (attention_map(student) - attention_map(teacher)).square().mean()


class AttentionLoss(Loss):
    """(beta / 2) times the sum over sections."""

    storable = True

    def __init__(self, teacher_taps: Sequence[Tap], student_taps: Sequence[Tap], beta: float) -> None:
        super().__init__()
        self.teacher_taps, self.student_taps, self.beta = tuple(teacher_taps), tuple(student_taps), beta

    def target(self, teacher: Reading | None, batch: Batch | None = None) -> tuple[Tensor, ...]:
        """The teacher's maps at the sections' ends."""
        assert teacher is not None
        return tuple(teacher[tap].detach() for tap in self.teacher_taps)

    def forward(self, student: Reading, target: Sequence[Tensor]) -> Tensor:
        """A float32 scalar, at least 0."""
        losses = [attention_loss(student[tap], maps) for tap, maps in zip(self.student_taps, target, strict=True)]
        return self.beta / 2 * torch.stack(losses).sum()


@register
@specification
class Attention(Knowledge):
    """Where each section's output is large. Channels and sizes may differ.

    The squared distances are divided by their number of positions, so a large map counts no more than a small one.

    Attributes:
        beta: the loss is beta / 2 times the sum over sections of the squared distance between attention maps; the
            authors use 1000.
    """

    summary: ClassVar[str] = "where in the image each section's output is large; any channels, any sizes"
    paper: ClassVar[str] = "Zagoruyko and Komodakis 2017, Paying More Attention to Attention"

    name: Literal["attention"] = "attention"
    beta: float = 1000.0

    def build(self, pairs: Pairs, setting: Setting | None = None) -> AttentionLoss:
        """One term for each pair's exits."""
        return AttentionLoss([p.teacher.exit for p in pairs], [p.student.exit for p in pairs], self.beta)


@register_method(
    "at",
    transfers="where in the image each section's output is large",
    needs=ANY_CHANNELS,
    paper="Zagoruyko and Komodakis 2017",
)
def _added() -> tuple[Stage, ...]:
    return added(Attention())
