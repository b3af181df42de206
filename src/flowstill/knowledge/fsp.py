"""The flow of the solution procedure (FSP): how a network gets from one layer to another.

Yim, Joo, Bae, Kim: "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
CVPR 2017. The inner products of two layers' channels say which features of one go with which features of the other (Eq.
1). A student with the teacher's inner products solves the problem the teacher's way, whatever its own maps look like
(Eq. 2).

What the paper leaves open, and what public code does about it:

* The equal weights alpha_i of Eq. 2 have no printed value. The official code of Lee et al. (ECCV 2018) divides the
  summed squares by the number of entries of all matrices, as ``equal`` does. RepDistiller takes the mean over each
  matrix (``element_mean``). torchdistill does not square the norms, which is a different loss from Eq. 2.
* The two layers are "the first and last layers in a section", elsewhere a module's "inputs and outputs". Most code,
  like ``sections`` here, goes from what enters a section to what leaves it. Only this reading needs the pooling that
  the paper mentions, and only this one has a flow in sections of one block, as in ResNet-8.
* The paper's pooling is max-pooling. RepDistiller average-pools, which gives a different matrix.
* How rows and columns are shuffled for an ensemble: see ``flowstill.knowledge.shuffling``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from flowstill.data.batch import Batch
from flowstill.errors import ShapeError
from flowstill.features.pairs import Pairs
from flowstill.features.sections import Section
from flowstill.features.taps import Flow, Reading
from flowstill.knowledge.flows import Shaped, Weighting, check_channels, flow_weights, taps_of
from flowstill.knowledge.numbered import check_in_range, check_numbers, end_below
from flowstill.knowledge.products import max_pooled, mean_products
from flowstill.knowledge.shuffling import Orders, Shuffle, drawn_orders, shuffled
from flowstill.schema import specification
from flowstill.transfer.knowledge import Knowledge, Loss, Setting, register
from flowstill.transfer.methods import SAME_CHANNELS, before_task, clipped, register_method
from flowstill.transfer.stages import Stage

__all__ = ["FSP", "FSPLoss", "Weighting", "build_loss", "flow_weights", "fsp_loss", "fsp_matrix"]


def fsp_matrix(front: Tensor, back: Tensor) -> Tensor:
    """Flow between two feature maps, Eq. 1 of Yim et al. (2017).

    G[b, i, j] = 1/(h w) * sum_st front[b, i, s, t] * back[b, j, s, t]

    If the maps' sizes differ, the larger is max-pooled to the smaller's height h and width w; adaptively where the ratio
    is not whole, as from 15 to 7, which the paper does not need. Half precision is read as it comes and summed in float32,
    also under autocast. Any memory layout. Differentiable any number of times in reverse mode; not in forward mode.

    Args:
        front: (N, m, H, W), the map that comes first in the network.
        back: (N, n, h, w).

    Returns:
        (N, m, n), float32, or float64 if either map is.

    Raises:
        ShapeError: not two (N, C, H, W) maps of the same images, or neither is the larger.

    >>> fsp_matrix(torch.ones(1, 2, 4, 4), 3 * torch.ones(1, 1, 4, 4))
    tensor([[[3.],
             [3.]]])
    """
    size = _common_size(front, back)
    return mean_products(max_pooled(front, size), max_pooled(back, size))


def _common_size(front: Tensor, back: Tensor) -> tuple[int, int]:
    """Height and width of the smaller map.

    Raises:
        ShapeError: not two maps of the same images, or neither is the larger.
    """
    shapes = f"front {tuple(front.shape)} and back {tuple(back.shape)}"
    if front.ndim != 4 or back.ndim != 4:
        raise ShapeError(f"An FSP matrix needs two maps (N, channels, height, width). Received: {shapes}.")
    if front.shape[0] != back.shape[0]:
        raise ShapeError(f"An FSP matrix needs two maps of the same images. Received different numbers: {shapes}.")
    (high, wide), (height, width) = front.shape[2:], back.shape[2:]
    if (high - height) * (wide - width) < 0:
        raise ShapeError(
            f"An FSP matrix needs one map to be the larger. Received one that is higher and one that is wider: {shapes}."
        )
    return min(high, height), min(wide, width)


def fsp_loss(student_matrices: Sequence[Tensor], teacher_matrices: Sequence[Tensor], alphas: Sequence[float]) -> Tensor:
    """Distance between two networks' flows, Eq. 2 of Yim et al. (2017).

    L = 1/N * sum_b sum_i alpha_i * ||G_i^T[b] - G_i^S[b]||_F^2

    Args:
        student_matrices: one (N, m_i, n_i) for each flow i.
        teacher_matrices: the same shapes.
        alphas: the weight of each flow.

    Returns:
        A scalar in the matrices' dtype.

    Raises:
        ShapeError: a student's matrix has another shape than the teacher's.

    >>> fsp_loss([torch.zeros(4, 2, 3)], [torch.ones(4, 2, 3)], [1.0])
    tensor(6.)
    """
    distances = []
    for student, teacher, alpha in zip(student_matrices, teacher_matrices, alphas, strict=True):
        if student.shape != teacher.shape:
            raise ShapeError(
                f"FSP matrices of {tuple(student.shape)} (student) and {tuple(teacher.shape)} (teacher) "
                "differ: both networks need the same channels, and the same images."
            )
        distances.append(alpha * F.mse_loss(student, teacher, reduction="sum") / len(student))
    return torch.stack(distances).sum()


class FSPLoss(Loss):
    """Eq. 2 between a student's reading and a teacher's matrices; no parameters of its own.

    The target is not shuffled, so that one stored target serves every shuffle.

    Args:
        teacher: each matrix's flow in the teacher.
        student: the same flows in the student.
        alphas: the weight of each.
        orders: of the rows and columns of each of the teacher's matrices; () for no shuffle.
    """

    storable = True

    def __init__(
        self, teacher: Sequence[Flow], student: Sequence[Flow], alphas: Sequence[float], orders: Sequence[Orders] = ()
    ) -> None:
        super().__init__()
        self.teacher_flows, self.student_flows, self.alphas = tuple(teacher), tuple(student), tuple(alphas)
        self.teacher_taps, self.student_taps = taps_of(self.teacher_flows), taps_of(self.student_flows)
        self._shuffled = len(orders)
        for number, (rows, columns) in enumerate(orders):  # not saved, since the seed gives them again
            self.register_buffer(f"rows{number}", rows, persistent=False)
            self.register_buffer(f"columns{number}", columns, persistent=False)

    @property
    def orders(self) -> tuple[Orders, ...]:
        """The orders of each matrix's rows and columns, on the loss's device; () without a shuffle."""
        numbers = range(self._shuffled)
        return tuple((self.get_buffer(f"rows{number}"), self.get_buffer(f"columns{number}")) for number in numbers)

    @torch.no_grad()
    def target(self, teacher: Reading | None, batch: Batch | None = None) -> tuple[Tensor, ...]:
        """The teacher's matrices, one (N, m_i, n_i) for each flow, not shuffled."""
        return _matrices(self.require_teacher(teacher), self.teacher_flows)

    def forward(self, student: Reading, target: Sequence[Tensor]) -> Tensor:
        """Eq. 2, a float32 scalar: mean over the batch, weighted sum over the flows."""
        if self._shuffled:
            target = [shuffled(matrix, *orders) for matrix, orders in zip(target, self.orders, strict=True)]
        return fsp_loss(_matrices(student, self.student_flows), target, self.alphas)


@register
@specification
class FSP(Knowledge):
    """Pulls the student's FSP matrices towards the teacher's; needs no labels.

    Attributes:
        weighting: the alpha_i of Eq. 2. ``equal``: 1 over the number of entries of all matrices together. ``sum``: 1,
            the plain sum of squares, which can diverge at the paper's learning rate. ``element_mean``: 1 over the
            number of entries of each matrix. Or one number for each trained section.
        flows: where each flow starts and ends. ``sections``: from what enters a section to what leaves it; the front
            map is max-pooled where the section shrinks it. ``inside``: from the output of the section's first block to
            that of its last, which in a section of one block is the Gram matrix of that one map.
        sections: numbers of the sections to train, counted from 0; None for all. The paper trains them "independently"
            in section 4.1.1.
        freeze_below: keep the student's sections below the first one in ``sections`` fixed in every update that
            contains this term. Needs ``sections``, without 0.
        shuffle: reorder the teacher's channels, by an order drawn once per stage from the job's seed. ``realisable``:
            an order that a network of the teacher's kind can have. ``independent``: one order per tap. ``per_matrix``:
            one order for the rows and one for the columns of each matrix. None keeps the teacher's order.
    """

    summary: ClassVar[str] = "how features flow through each section (FSP matrices); needs equal channels"
    paper: ClassVar[str] = "Yim et al., CVPR 2017"
    left_open: ClassVar[str] = "how the FSP loss weighs its matrices"

    name: Literal["fsp"] = "fsp"
    weighting: Weighting = "equal"
    flows: Literal["sections", "inside"] = "sections"
    sections: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    freeze_below: bool = False
    shuffle: Shuffle | None = None

    def __post_init__(self) -> None:
        check_numbers("sections", self.sections, self.freeze_below, "leave it out for all of them")

    def build(self, pairs: Pairs, setting: Setting | None = None) -> FSPLoss:
        """The loss for these pairs of sections.

        Raises:
            ShapeError: there are no pairs, or a teacher's matrix has another shape than its student's.
            RecipeError: a section does not exist, or the number of weights is not the number of sections.
        """
        self.require_pairs(pairs)
        numbers = range(len(pairs)) if self.sections is None else self.sections
        check_in_range(self.name, "sections", numbers, pairs)
        teacher = [self._flow(pairs[number].teacher) for number in numbers]
        student = [self._flow(pairs[number].student) for number in numbers]
        check_channels(self.name, teacher, student, "section", numbers)
        alphas = flow_weights(self.weighting, [shape for _, shape in teacher])
        loss = build_loss(pairs, teacher, student, alphas, self.shuffle, setting)
        if self.freeze_below:
            loss.frozen_below = end_below(pairs, min(numbers))
        return loss

    def _flow(self, section: Section) -> Shaped:
        """The section's flow, and its matrix's shape."""
        if self.flows == "inside":
            return Flow(section.first, section.exit), (section.first_shape[0], section.exit_shape[0])
        return section.flow, (section.entry_shape[0], section.exit_shape[0])


def build_loss(
    pairs: Pairs,
    teacher: Sequence[Shaped],
    student: Sequence[Shaped],
    alphas: Sequence[float],
    shuffle: Shuffle | None,
    setting: Setting | None,
) -> FSPLoss:
    """Eq. 2 over these flows of the pairs; a shuffle is drawn from the setting's seed, 0 without a setting."""
    flows = [flow for flow, _ in teacher]
    orders = drawn_orders(shuffle, [pair.teacher for pair in pairs], flows, setting.seed if setting else 0)
    return FSPLoss(flows, [flow for flow, _ in student], alphas, orders)


def _matrices(reading: Reading, flows: Sequence[Flow]) -> tuple[Tensor, ...]:
    matrices = []
    for flow in flows:
        try:
            matrices.append(fsp_matrix(reading[flow.front], reading[flow.back]))
        except ShapeError as error:
            raise ShapeError(f"Flow {flow.front} -> {flow.back}: {error}") from None
    return tuple(matrices)


@register_method(
    "fsp",
    transfers="how features flow through each section (FSP matrices), before the task",
    needs=SAME_CHANNELS,
    paper="Yim et al. 2017",
)
def _before_task() -> tuple[Stage, ...]:
    return before_task(FSP())


@register_method(
    "fsp-joint",
    transfers="how features flow through each section (FSP matrices), together with the task and clipped to its gradient",
    needs=SAME_CHANNELS,
    paper="Yim et al. 2017; Lee et al. 2018",
)
def _joint() -> tuple[Stage, ...]:
    return clipped(FSP())


@register_method(
    "fsp-shuffled",
    transfers="FSP matrices of the teacher with its channels reordered, so that students differ, before the task",
    needs=SAME_CHANNELS,
    paper="Yim et al. 2017",
)
def _shuffled() -> tuple[Stage, ...]:
    return before_task(FSP(shuffle="realisable"))
