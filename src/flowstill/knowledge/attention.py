"""Attention transfer: where in the image a section looks.

Zagoruyko and Komodakis: "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks
via Attention Transfer", ICLR 2017. Their loss is the task's plus beta / 2 times the squared distances between attention
maps, summed over sections.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from flowstill.features.pairs import Pairs
from flowstill.features.taps import Tap
from flowstill.knowledge.maps import MapsLoss, precise, same_size
from flowstill.schema import specification
from flowstill.transfer.knowledge import Knowledge, Setting, register
from flowstill.transfer.methods import ANY_CHANNELS, added, register_method
from flowstill.transfer.stages import Stage


def attention_map(maps: Tensor) -> Tensor:
    """Where the map's energy lies, Eq. 1 of Zagoruyko and Komodakis (2017) with p = 2, L2-normalised.

    q[b] = vec(sum_c F[b, c]^2) / ||vec(sum_c F[b, c]^2)||_2

    Args:
        maps: (B, C, H, W).

    Returns:
        (B, H W), one number for each position, float32 or better; all zeros where the map is.

    >>> import torch
    >>> attention_map(torch.tensor([[[[2.0, 0.0]], [[0.0, 2.0]]]]))
    tensor([[0.7071, 0.7071]])
    """
    return F.normalize(precise(maps).square().sum(1).flatten(1), dim=1)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """||q_S - q_T||^2 divided by the number of positions, mean over the batch.

    The paper sets beta to 10^3 divided by the number of elements of the attention map, and its code takes the mean over
    them. The larger map is average-pooled to the smaller one's size.

    Args:
        student: (B, C, H, W).
        teacher: (B, D, h, w).

    Returns:
        A scalar in [0, 2 / positions].

    >>> import torch
    >>> attention_loss(torch.ones(1, 2, 1, 1), torch.ones(1, 3, 1, 1))
    tensor(0.)
    """
    student, teacher = same_size(student, teacher)
    return (attention_map(student) - attention_map(teacher)).square().mean()


class AttentionLoss(MapsLoss):
    """beta / 2 times the sum of ``attention_loss`` over sections.

    Args:
        teacher_taps: the ends of the teacher's sections.
        student_taps: the ends of the student's.
        beta: the authors use 1000.
    """

    def __init__(
        self, teacher_taps: Iterable[Tap | str], student_taps: Iterable[Tap | str], beta: float = 1000.0
    ) -> None:
        super().__init__(teacher_taps, student_taps, beta / 2)

    def compare_maps(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``attention_loss`` at one section's end."""
        return attention_loss(student, teacher)


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
        """One term for each pair's ends.

        Raises:
            ShapeError: there are no pairs.
        """
        self.require_pairs(pairs)
        return AttentionLoss([p.teacher.exit for p in pairs], [p.student.exit for p in pairs], self.beta)


@register_method(
    "at",
    transfers="where in the image each section's output is large",
    needs=ANY_CHANNELS,
    paper="Zagoruyko and Komodakis 2017",
)
def _added() -> tuple[Stage, ...]:
    return added(Attention())
