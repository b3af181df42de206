"""Distilled feature vectors: which directions of feature space an image lives in, and how two layers' directions
relate.

Lee, Kim, Song: "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018. The strongest
right-singular vectors of a section's front and back maps (``truncated_svd``) are brought into the teacher's order and
signs (Eq. 3-8) and compared entry by entry under a radial basis function (Eq. 9-10); the student imitates the result
(Eq. 11). The maps' sizes may differ, within one network and between the two.

What the paper leaves open, and what public code does about it:

* Gradient. Eq. 1-2 is not the gradient of a truncated decomposition, see ``decomposition``; ``gradient: paper`` has it
  as printed. The official code keeps five vectors whatever the rank, which is neither.
* Reduction. Eq. 11 does not mention the batch. The official code sums over it (``sum``); RepDistiller divides by its
  size and drops the half; ``mean`` divides. A rank-1 loss is small, about 0.01 per image and section: divided by the
  batch size it hardly moves a student that trains on labels at the same time. Hence ``sum``.
* Signs. A singular vector's sign is arbitrary. Eq. 6 flips the student's vectors to match the teacher's (``paper``),
  the official code the teacher's to match the student's (``official``). Front and back are flipped independently, so
  the first makes the loss depend on the teacher's arbitrary signs, the second on the student's. ``canonical`` gives the
  teacher's vectors a non-negative sum, then follows Eq. 6: the loss depends on no arbitrary sign, and the first vector
  of a map after a ReLU has no negative entry.
* Alignment. The argmax of Eq. 5 may take one student vector for two of the teacher's (``greedy``); ``hungarian`` takes
  each once, with the largest sum of similarities. The student offers one vector more than the rank, as in the paper.
* Scale. The official code multiplies by the square root of the rank, the paper does not: ``sqrt_rank``.
* Missing vectors. A module uses as many vectors as all its four maps have channels and positions. A vector without
  energy (a dead map, dependent channels) has no direction to compare, and counts nothing for its image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flowstill.data.batch import Batch
from flowstill.errors import ShapeError
from flowstill.features.pairs import Pairs
from flowstill.features.taps import Flow, Reading
from flowstill.knowledge.decomposition import Gradient, truncated_svd
from flowstill.knowledge.flows import taps_of
from flowstill.knowledge.radial import dfv_loss, rbf
from flowstill.schema import specification
from flowstill.transfer.knowledge import Knowledge, Loss, Setting, register, without_autocast
from flowstill.transfer.methods import NESTEROV, SAME_CHANNELS, before_task, clipped, register_method
from flowstill.transfer.procedures import schedule
from flowstill.transfer.stages import Stage

__all__ = ["SVD", "SVDLoss", "align", "canonical_signs", "dfv_loss", "feature_weights", "match", "rbf", "truncated_svd"]

Matching = Literal["greedy", "hungarian"]
Signs = Literal["canonical", "paper", "official"]


def feature_weights(sigma: Tensor) -> Tensor:
    """Singular values divided by their norm, Eq. 4 and 8. (B, k) -> (B, k); zeros stay zeros.

    >>> feature_weights(torch.tensor([[4.0, 3.0]]))
    tensor([[0.8000, 0.6000]])
    """
    norm: Tensor = torch.linalg.vector_norm(sigma, dim=1, keepdim=True)
    return sigma / norm.clamp_min(torch.finfo(sigma.dtype).tiny)


def canonical_signs(vectors: Tensor) -> Tensor:
    """Each vector or its negative, whichever has the larger sum; at a tie, the one whose largest entry is positive.

    (B, D, k) -> (B, D, k).

    >>> canonical_signs(torch.tensor([[[0.6, -0.6], [-0.8, 0.6], [0.0, -0.5]]]))
    tensor([[[-0.6000,  0.6000],
             [ 0.8000, -0.6000],
             [-0.0000,  0.5000]]])
    """
    total = vectors.sum(1, keepdim=True)
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    tie = total.abs() <= 16 * torch.finfo(vectors.dtype).eps  # the sum of a unit vector, up to rounding
    return torch.where(torch.where(tie, largest, total) < 0, -vectors, vectors)


def match(teacher: Tensor, student: Tensor, matching: Matching = "greedy") -> tuple[Tensor, Tensor]:
    """The student vector most similar to each of the teacher's, Eq. 5, and its sign, Eq. 6.

    Similarity is the absolute cosine. The choice itself has no gradient.

    Args:
        teacher: (B, D, k), unit vectors or zeros.
        student: (B, D, m), m at least k.
        matching: ``greedy``, the most similar for each independently; ``hungarian``, each at most once, for the largest
            sum.

    Returns:
        vectors (B, D, k) of the student and signs (B, 1, k), 1 or -1; 1 for orthogonal vectors.

    Raises:
        ShapeError: the images or channels differ, or the student has fewer vectors than the teacher.
    """
    if teacher.shape[:2] != student.shape[:2] or teacher.shape[2] > student.shape[2]:
        raise ShapeError(
            f"Expected singular vectors of the same images and channels, and at least as many of the student's. Received: "
            f"teacher {tuple(teacher.shape)}, student {tuple(student.shape)}."
        )
    with without_autocast(student.device):  # bfloat16 cannot tell 0.700 from 0.701
        cosines = teacher.detach().mT @ student.detach()
    chosen = cosines.abs().argmax(2) if matching == "greedy" else _hungarian(cosines.abs())
    vectors = student.gather(2, chosen[:, None].expand(-1, student.shape[1], -1))
    signs = torch.where(cosines.gather(2, chosen[..., None]).mT < 0, -1, 1).to(vectors.dtype)
    return vectors, signs


def align(teacher: Tensor, student: Tensor, matching: Matching = "greedy") -> Tensor:
    """The student's vectors in the teacher's order and with its signs, Eq. 5-6.

    Args:
        teacher: (B, D, k), unit vectors or zeros.
        student: (B, D, m), m at least k.
        matching: as in ``match``.

    Returns:
        (B, D, k).

    Raises:
        ShapeError: as in ``match``.

    >>> teacher, student = torch.eye(3)[None, :, :2], -torch.eye(3)[None, :, [2, 1, 0]]
    >>> torch.equal(align(teacher, student), teacher)
    True
    """
    vectors, signs = match(teacher, student, matching)
    return vectors * signs


@register
@specification
class SVD(Knowledge):
    """Pulls the student's distilled feature vectors towards the teacher's; needs no labels.

    The module's docstring says what the paper and public code do about each option.

    Attributes:
        rank: number of singular vectors of each map, the paper's k; fewer where a map has fewer channels or positions.
            The paper's tables use 1, its Table 4 up to 16.
        beta: width of the radial basis function; 8 in the paper.
        reduction: ``sum`` over the batch, or its ``mean``.
        alignment: how student vectors are assigned to the teacher's. ``greedy``: the most similar for each,
            independently (Eq. 5). ``hungarian``: each student vector at most once, with the largest sum of
            similarities.
        signs: which vectors are flipped to match. ``canonical``: the teacher's get a sign that does not depend on the
            solver, then the student's are flipped. ``paper``: the student's (Eq. 6). ``official``: the teacher's.
        gradient: of the decomposition: ``exact``, or ``paper`` for Eq. 1-2 as printed.
        sqrt_rank: multiply the loss by the square root of the rank, as the official code does.
    """

    summary: ClassVar[str] = "how singular vectors of a section's two ends relate; equal channels, any sizes"
    paper: ClassVar[str] = "Lee et al., ECCV 2018"

    name: Literal["svd"] = "svd"
    rank: Annotated[int, Field(ge=1)] = 1
    beta: Annotated[float, Field(gt=0)] = 8.0
    reduction: Literal["sum", "mean"] = "sum"
    alignment: Matching = "greedy"
    signs: Signs = "canonical"
    gradient: Gradient = "exact"
    sqrt_rank: bool = False

    @property
    def needs_float32(self) -> bool:
        """From the second vector on: the gradient divides by gaps between singular values, of which the first is wide."""
        return self.rank > 1

    def build(self, pairs: Pairs, setting: Setting | None = None) -> SVDLoss:
        """The loss for these pairs of sections: one module (front, back) for what enters and what leaves each.

        Raises:
            ShapeError: there are no pairs, or a teacher's map has other channels than its student's.
        """
        self.require_pairs(pairs)
        wrong = {
            f"{tap_t} in the teacher has {shape_t[0]} channels, {tap_s} in the student {shape_s[0]}"
            for pair in pairs
            for tap_t, shape_t, tap_s, shape_s in (
                (pair.teacher.entry, pair.teacher.entry_shape, pair.student.entry, pair.student.entry_shape),
                (pair.teacher.exit, pair.teacher.exit_shape, pair.student.exit, pair.student.exit_shape),
            )
            if shape_t[0] != shape_s[0]
        }
        if wrong:
            raise ShapeError(
                f"svd needs equal channels, but {'; '.join(sorted(wrong))}. Give the student the teacher's widths, or "
                "choose a knowledge that allows any channels, such as 'attention'."
            )
        return SVDLoss(self, [pair.teacher.flow for pair in pairs], [pair.student.flow for pair in pairs])


class SVDLoss(Loss):
    """Eq. 11 between a student's reading and the teacher's singular vectors; no parameters of its own.

    Args:
        options: of the loss.
        teacher: each module's flow in the teacher.
        student: the same flows in the student.
    """

    storable = True

    def __init__(self, options: SVD, teacher: Sequence[Flow], student: Sequence[Flow]) -> None:
        super().__init__()
        self.options, self.reduction = options, options.reduction
        self.teacher_flows, self.student_flows = tuple(teacher), tuple(student)
        self.teacher_taps, self.student_taps = taps_of(self.teacher_flows), taps_of(self.student_flows)

    @torch.no_grad()
    def target(self, teacher: Reading | None, batch: Batch | None = None) -> tuple[Tensor, ...]:
        """The teacher's singular vectors (B, D, k) and their weights (B, k), Eq. 4: tap by tap, one after the other."""
        teacher = self.require_teacher(teacher)
        parts: list[Tensor] = []
        for tap in self.teacher_taps:
            sigma, vectors = truncated_svd(teacher[tap], self.options.rank)
            parts += [
                canonical_signs(vectors) if self.options.signs == "canonical" else vectors,
                feature_weights(sigma),
            ]
        return tuple(parts)

    def forward(self, student: Reading, target: Sequence[Tensor]) -> Tensor:
        """Eq. 11, a float32 scalar: sum over the modules, sum or mean over the batch."""
        rank, gradient = self.options.rank, self.options.gradient
        features_t = dict(zip(self.teacher_taps, zip(target[::2], target[1::2], strict=True), strict=True))
        vectors_s = {tap: truncated_svd(student[tap], rank + 1, gradient=gradient)[1] for tap in self.student_taps}
        losses = [
            self._module(
                features_t[flow_t.front], vectors_s[flow_s.front], features_t[flow_t.back], vectors_s[flow_s.back]
            )
            for flow_t, flow_s in zip(self.teacher_flows, self.student_flows, strict=True)
        ]
        return torch.stack(losses).sum()

    def _module(
        self, front_t: tuple[Tensor, Tensor], front_s: Tensor, back_t: tuple[Tensor, Tensor], back_s: Tensor
    ) -> Tensor:
        """One module's loss, with as many vectors as all four maps have."""
        options = self.options
        k = min(options.rank, *(vectors.shape[2] for vectors in (front_t[0], back_t[0], front_s, back_s)))
        ends = [self._features(*front_t, front_s, k), self._features(*back_t, back_s, k)]
        # If one vector of a pair has no energy, both become zero: equal features give equal DFVs and no gradient.
        energetic = torch.stack([(f != 0).any(1, keepdim=True) for end in ends for f in end]).all(0)
        (f_t, f_s), (b_t, b_s) = ([torch.where(energetic, f, 0) for f in end] for end in ends)
        loss = dfv_loss((f_s, b_s), (f_t, b_t), options.beta, options.reduction)
        return loss * k**0.5 if options.sqrt_rank else loss

    def _features(self, vectors: Tensor, weights: Tensor, student: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """F_T and F_S of one map, Eq. 3-8: (B, D, k) each."""
        vectors, weights = vectors[..., :k].to(student), feature_weights(weights[:, :k].to(student))[:, None]
        aligned, signs = match(vectors, student[..., : k + 1], self.options.alignment)
        if self.options.signs == "official":
            return weights * signs * vectors, weights * aligned
        return weights * vectors, weights * signs * aligned


def _hungarian(likeness: Tensor) -> Tensor:
    """The student vector assigned to each of the teacher's, (B, k, m) -> (B, k), for the largest sum."""
    from scipy.optimize import linear_sum_assignment

    rows = [linear_sum_assignment(one, maximize=True)[1].tolist() for one in likeness.nan_to_num().cpu().numpy()]
    return torch.tensor(rows, dtype=torch.int64, device=likeness.device).view(likeness.shape[:2])


VECTORS_LR = schedule((1e-2, 5_250), (1e-3, 10_500), (1e-4, 15_750), (1e-5, 21_000))[1]  # by ten at each quarter


@register_method(
    "svd",
    transfers="how the singular vectors at the two ends of each section relate, before the task",
    needs=SAME_CHANNELS,
    paper="Lee et al. 2018",
)
def _before_task() -> tuple[Stage, ...]:
    return before_task(SVD(), VECTORS_LR, optimizer=NESTEROV)


@register_method(
    "svd-joint",
    transfers="how the singular vectors at the two ends of each section relate, together with the task and clipped to its "
    "gradient",
    needs=SAME_CHANNELS,
    paper="Lee et al. 2018",
)
def _joint() -> tuple[Stage, ...]:
    return clipped(SVD(), NESTEROV)
