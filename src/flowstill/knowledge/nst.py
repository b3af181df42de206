"""Neuron selectivity transfer (NST): match what the neurons are selective for.

Huang and Wang: "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from flowstill.features.pairs import Pairs
from flowstill.features.taps import Tap
from flowstill.knowledge.maps import MapsLoss, precise, same_size
from flowstill.schema import specification
from flowstill.transfer.knowledge import Knowledge, Setting, register, without_autocast
from flowstill.transfer.methods import ANY_CHANNELS, added, register_method
from flowstill.transfer.stages import Stage


def selectivity(maps: Tensor) -> Tensor:
    """Each channel's spatial pattern as a unit vector: the samples whose distributions are compared.

    Args:
        maps: (B, C, H, W).

    Returns:
        (B, C, H W), float32 or better; a dead channel stays zero.
    """
    return F.normalize(precise(maps).flatten(2), dim=2)


def mmd2(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy under the kernel k(x, y) = (x . y)^2, for each image.

    MMD^2 = mean k(T, T) + mean k(S, S) - 2 mean k(S, T)

    For this kernel it equals ||X^T X / C_T - Y^T Y / C_S||_F^2, with the channels as rows of X and Y. Whichever form has
    the smaller products is computed.

    Args:
        student: (B, C_S, P), the rows Y.
        teacher: (B, C_T, P), the rows X.

    Returns:
        (B,), at least 0 up to rounding.
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
    """Squared maximum mean discrepancy between the channels' patterns, mean over the batch.

    The larger map is average-pooled to the smaller one's size.

    Args:
        student: (B, C, H, W).
        teacher: (B, D, h, w).

    Returns:
        A scalar, at least 0 up to rounding.
    """
    student, teacher = same_size(student, teacher)
    with without_autocast(student.device):
        if student.shape[2:].numel() < max(student.shape[1], teacher.shape[1]):
            return mmd2(selectivity(student), selectivity(teacher)).mean()
        return _of_products(precise(student).flatten(2), precise(teacher).flatten(2)).mean()


def _of_products(student: Tensor, teacher: Tensor) -> Tensor:
    """``mmd2`` of rows (B, C, P) that are not normalised yet: their products, being smaller, are normalised instead."""
    gram_s, gram_t, cross = student @ student.mT, teacher @ teacher.mT, student @ teacher.mT
    tiny = torch.finfo(gram_s.dtype).tiny  # a dead channel's products are all 0, and it stays without gradient
    norms_s, norms_t = (gram.diagonal(dim1=1, dim2=2).clamp_min(tiny).sqrt() for gram in (gram_s, gram_t))

    def mean_kernel(products: Tensor, norms_a: Tensor, norms_b: Tensor) -> Tensor:
        return (products / norms_a[:, :, None] / norms_b[:, None]).square().mean((1, 2))

    return (
        mean_kernel(gram_t, norms_t, norms_t)
        + mean_kernel(gram_s, norms_s, norms_s)
        - 2 * mean_kernel(cross, norms_s, norms_t)
    )


class NSTLoss(MapsLoss):
    """strength / 2 times the sum of ``nst_loss`` over the chosen sections.

    Args:
        teacher_taps: the ends of the teacher's sections.
        student_taps: the ends of the student's.
        strength: the paper's lambda; public code uses 50.
    """

    def __init__(
        self, teacher_taps: Iterable[Tap | str], student_taps: Iterable[Tap | str], strength: float = 50.0
    ) -> None:
        super().__init__(teacher_taps, student_taps, strength / 2)

    def compare_maps(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``nst_loss`` at one section's end."""
        return nst_loss(student, teacher)


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

    @property
    def needs_float32(self) -> bool:
        """Always: patterns are divided by their norms, and what is left of a difference is small."""
        return True

    def build(self, pairs: Pairs, setting: Setting | None = None) -> NSTLoss:
        """One term for each chosen pair's ends.

        Raises:
            ShapeError: there are no pairs.
        """
        self.require_pairs(pairs)
        chosen = pairs[-1:] if self.sections == "last" else pairs
        return NSTLoss([p.teacher.exit for p in chosen], [p.student.exit for p in chosen], self.strength)


@register_method(
    "nst", transfers="which spatial patterns the channels select", needs=ANY_CHANNELS, paper="Huang and Wang 2017"
)
def _added() -> tuple[Stage, ...]:
    return added(NST())
