"""Neuron selectivity transfer (Huang and Wang 2017, "Like What You Like"): match what the neurons are selective for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from flowstill.data.batch import Batch
from flowstill.errors import RecipeError
from flowstill.features.sections import Pairs
from flowstill.features.taps import Reading, Tap
from flowstill.schema import specification
from flowstill.transfer.knowledge import Knowledge, Loss, Setting, register, without_autocast
from flowstill.transfer.methods import ANY_CHANNELS, added, register_method
from flowstill.transfer.stages import Stage


def selectivity(maps: Tensor) -> Tensor:
    """Each channel's spatial pattern as a unit vector: the samples whose distributions are compared.

    Args: maps (B, C, H, W). Returns: (B, C, H W), float32 or better; a dead channel stays zero.
    """
    return F.normalize(_rows(maps), dim=2)


def _rows(maps: Tensor) -> Tensor:
    return (maps if maps.element_size() == 8 else maps.float()).flatten(2)


def mmd2(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy under the kernel k(x, y) = (x . y)^2, for each image.

    mean k(T, T) + mean k(S, S) - 2 mean k(S, T). For this kernel it equals ||X^T X / C_T - Y^T Y / C_S||_F^2 with the
    channels as rows of X and Y; whichever needs the smaller products is computed.

    Args: student (B, C_S, P), teacher (B, C_T, P). Returns: (B,), at least 0 up to rounding.
    """
    positions, channels = student.shape[2], max(student.shape[1], teacher.shape[1])
    if positions < channels:
        gram_s = student.mT @ student / student.shape[1]
        gram_t = teacher.mT @ teacher / teacher.shape[1]
        return (gram_t - gram_s).square().sum((1, 2))

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.mT).square().mean((1, 2))

    return mean_kernel(teacher, teacher) + mean_kernel(student, student) - 2 * mean_kernel(student, teacher)


def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the batch of MMD^2 between the channels' patterns, the larger map average-pooled to the smaller's size.

    Args: student (B, C, H, W), teacher (B, D, h, w). Returns: a scalar.
    """
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    student, teacher = (
        F.adaptive_avg_pool2d(maps, size) if maps.shape[2:] != size else maps for maps in (student, teacher)
    )
    with without_autocast(student.device):
        if size[0] * size[1] < max(student.shape[1], teacher.shape[1]):
            return mmd2(selectivity(student), selectivity(teacher)).mean()
        return _of_products(_rows(student), _rows(teacher)).mean()


def _of_products(student: Tensor, teacher: Tensor) -> Tensor:
    """``mmd2`` of rows not yet brought to unit length, (B, C, P) each: it is done to their products, which are smaller."""
    own, its, both = student @ student.mT, teacher @ teacher.mT, student @ teacher.mT
    tiny = torch.finfo(own.dtype).tiny  # a dead channel has products of 0 with all, and stays without gradient
    norms_s, norms_t = (gram.diagonal(dim1=1, dim2=2).clamp_min(tiny).sqrt() for gram in (own, its))

    def mean_kernel(products: Tensor, norms_a: Tensor, norms_b: Tensor) -> Tensor:
        return (products / norms_a[:, :, None] / norms_b[:, None]).square().mean((1, 2))

    return (
        mean_kernel(its, norms_t, norms_t)
        + mean_kernel(own, norms_s, norms_s)
        - 2 * mean_kernel(both, norms_s, norms_t)
    )


class NSTLoss(Loss):
    """(weight / 2) times the sum over the chosen sections."""

    storable = True

    def __init__(self, teacher_taps: Sequence[Tap], student_taps: Sequence[Tap], factor: float) -> None:
        super().__init__()
        self.teacher_taps, self.student_taps, self.factor = tuple(teacher_taps), tuple(student_taps), factor

    def target(self, teacher: Reading | None, batch: Batch | None = None) -> tuple[Tensor, ...]:
        """The teacher's maps at the chosen sections' ends."""
        assert teacher is not None
        return tuple(teacher[tap].detach() for tap in self.teacher_taps)

    def forward(self, student: Reading, target: Sequence[Tensor]) -> Tensor:
        """A float32 scalar, at least 0 up to rounding."""
        losses = [nst_loss(student[tap], maps) for tap, maps in zip(self.student_taps, target, strict=True)]
        return self.factor / 2 * torch.stack(losses).sum()


@register
@specification
class NST(Knowledge):
    """The distribution of the channels' spatial patterns. Channels and sizes may differ.

    Attributes:
        strength: the paper's lambda: the loss is lambda / 2 times the sum over sections; public code uses 50.
        sections: which sections' outputs are compared: only the ``last`` as in the paper, or ``all`` as in public code.
    """

    summary: ClassVar[str] = "which spatial patterns the channels select; any channels, any sizes"
    paper: ClassVar[str] = "Huang and Wang 2017, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer"

    name: Literal["nst"] = "nst"
    strength: float = 50.0
    sections: Literal["last", "all"] = "last"

    def build(self, pairs: Pairs, setting: Setting | None = None) -> NSTLoss:
        """One term for each chosen pair's exits. Raises: RecipeError if no section was paired."""
        if not pairs:
            raise RecipeError("nst compares sections, but none of the teacher's was paired with one of the student's.")
        chosen = pairs[-1:] if self.sections == "last" else pairs
        return NSTLoss([p.teacher.exit for p in chosen], [p.student.exit for p in chosen], self.strength)


@register_method(
    "nst", transfers="which spatial patterns the channels select", needs=ANY_CHANNELS, paper="Huang and Wang 2017"
)
def _added() -> tuple[Stage, ...]:
    return added(NST())
