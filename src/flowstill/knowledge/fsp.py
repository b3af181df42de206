"""The flow of the solution procedure (FSP): how a network gets from one layer to another.

Yim, Joo, Bae, Kim: "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
Learning", CVPR 2017. The inner products of two layers' channels say which features of the one go with which of the
other (Eq. 1); a student that has the teacher's inner products solves the problem the teacher's way, whatever its own
maps look like (Eq. 2).

What the paper leaves open, and what is done about it in public code:

* The equal weights alpha_i of Eq. 2 have no printed value. The official code of Lee et al. (ECCV 2018) divides the
  summed squares by the number of entries of all matrices, and so does ``equal``. RepDistiller takes the mean over
  each matrix (``element_mean``); torchdistill does not square the norms, which is another loss than Eq. 2.
* The two layers are "the first and last layers in a section", elsewhere a module's "inputs and outputs". Most code,
  and ``sections`` here, goes from what enters a section to what leaves it: only this reading needs the pooling that
  the paper speaks of, and only this one says anything of sections of one block, as ResNet-8 has.
* The paper's pooling is max-pooling. RepDistiller pools by averages, which is another matrix.
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
from flowstill.errors import RecipeError, ShapeError
from flowstill.features.sections import Pairs, Section
from flowstill.features.taps import Flow, Reading
from flowstill.knowledge.matrices import fsp_matrix
from flowstill.knowledge.shuffling import Orders, Shuffle, drawn_orders, shuffled
from flowstill.schema import specification
from flowstill.transfer.knowledge import Knowledge, Loss, Setting, register
from flowstill.transfer.methods import SAME_CHANNELS, before_task, clipped, register_method
from flowstill.transfer.stages import Stage

__all__ = [
    "FSP",
    "FSPLoss",
    "Shaped",
    "Weighting",
    "build_loss",
    "check_channels",
    "flow_weights",
    "fsp_loss",
    "fsp_matrix",
]

Weighting = Literal["equal", "sum", "element_mean"] | tuple[Annotated[float, Field(ge=0)], ...]
Shaped = tuple[Flow, tuple[int, int]]  # a flow, and the shape of its matrix


def fsp_loss(student_matrices: Sequence[Tensor], teacher_matrices: Sequence[Tensor], alphas: Sequence[float]) -> Tensor:
    """Distance between two networks' flows, Eq. 2 of Yim et al. (2017).

    L = 1/N * sum_b sum_i alpha_i * ||G_i^T[b] - G_i^S[b]||_F^2

    Args:
        student_matrices: one (N, m_i, n_i) for each flow i.
        teacher_matrices: the same shapes.
        alphas: the weight of each flow.

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


def flow_weights(weighting: Weighting, shapes: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """The alpha_i of Eq. 2 for matrices of these shapes (m_i, n_i).

    ``equal``: all the same, as in the paper; their common value, which it does not print, is 1 / sum_i m_i n_i, so
    that the loss does not grow with the network's width. ``sum``: all 1, the plain sum of squares; sum_i m_i n_i
    times as large as ``equal``, it can diverge at the paper's learning rate of 1e-3. ``element_mean``: 1 / (m_i n_i),
    the mean over each matrix; not the paper's, for it favours narrow sections, 8 : 4 : 1 in a CIFAR ResNet.
    Numbers: taken as they are.

    Raises:
        RecipeError: another count of numbers than of matrices.

    >>> flow_weights("equal", [(1, 2), (2, 4)])
    (0.1, 0.1)
    >>> flow_weights("element_mean", [(1, 2), (2, 4)])
    (0.5, 0.125)
    """
    sizes = [m * n for m, n in shapes]
    if weighting == "equal":
        return (1 / sum(sizes),) * len(sizes)
    if weighting == "sum":
        return (1.0,) * len(sizes)
    if weighting == "element_mean":
        return tuple(1 / size for size in sizes)
    if len(weighting) != len(sizes):
        raise RecipeError(
            f"FSP: weighting has {len(weighting)} numbers {weighting}, but {len(sizes)} sections are "
            "trained; give one for each, in order, or 'equal'."
        )
    return weighting


class FSPLoss(Loss):
    """Eq. 2 between a student's reading and a teacher's matrices; no parameters of its own.

    teacher, student, alphas: each matrix's flow in both networks, and its weight. orders: of the rows and columns of
    each of the teacher's matrices, () where they are not shuffled. The target stays as the teacher gives it, so that
    one stored target serves every shuffle.
    """

    storable = True

    def __init__(
        self, teacher: Sequence[Flow], student: Sequence[Flow], alphas: Sequence[float], orders: Sequence[Orders] = ()
    ) -> None:
        super().__init__()
        self.teacher_flows, self.student_flows, self.alphas = tuple(teacher), tuple(student), tuple(alphas)
        self.teacher_taps = tuple(dict.fromkeys(tap for flow in teacher for tap in (flow.front, flow.back)))
        self.student_taps = tuple(dict.fromkeys(tap for flow in student for tap in (flow.front, flow.back)))
        self._shuffled = len(orders)
        for number, (rows, columns) in enumerate(orders):  # drawn from the seed again, so not saved
            self.register_buffer(f"rows{number}", rows, persistent=False)
            self.register_buffer(f"columns{number}", columns, persistent=False)

    @property
    def orders(self) -> tuple[Orders, ...]:
        """The orders of each matrix's rows and columns, on the loss's device; () where it does not shuffle."""
        numbers = range(self._shuffled)
        return tuple((self.get_buffer(f"rows{number}"), self.get_buffer(f"columns{number}")) for number in numbers)

    @torch.no_grad()
    def target(self, teacher: Reading | None, batch: Batch | None = None) -> tuple[Tensor, ...]:
        """The teacher's matrices, one (N, m_i, n_i) for each flow, not shuffled."""
        if teacher is None:
            raise ValueError("FSP matrices are made from a teacher's reading, and there is none")
        return _matrices(teacher, self.teacher_flows)

    def forward(self, student: Reading, target: Sequence[Tensor]) -> Tensor:
        """Eq. 2, a scalar of float32: mean over the batch, weighted sum over the flows."""
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
        if self.freeze_below and not (self.sections and min(self.sections)):
            raise ValueError(
                "'freeze_below' says something of sections above the first; name them in 'sections', or leave it out"
            )
        if self.sections is not None and not 0 < len(self.sections) == len(set(self.sections)):
            raise ValueError(f"sections {self.sections}: name at least one section, and none twice; or leave it out")

    def build(self, pairs: Pairs, setting: Setting | None = None) -> FSPLoss:
        """The loss for these pairs of sections.

        Raises:
            ShapeError: a teacher's matrix has another shape than its student's, or there are no pairs.
            RecipeError: a section that does not exist, or another count of weights than of sections.
        """
        numbers = range(len(pairs)) if self.sections is None else self.sections
        if not pairs:
            raise ShapeError("FSP needs at least one pair of sections, and these networks have none.")
        if max(numbers) >= len(pairs):
            raise RecipeError(
                f"FSP: no section {max(numbers)}: the networks pair in {len(pairs)} sections, numbered "
                f"from 0 to {len(pairs) - 1}; change 'sections'."
            )
        teacher = [self._flow(pairs[number].teacher) for number in numbers]
        student = [self._flow(pairs[number].student) for number in numbers]
        check_channels(teacher, student, "section", numbers)
        alphas = flow_weights(self.weighting, [shape for _, shape in teacher])
        loss = build_loss(pairs, teacher, student, alphas, self.shuffle, setting)
        if self.freeze_below:
            loss.frozen_below = pairs[min(numbers) - 1].student.exit
        return loss

    def _flow(self, section: Section) -> Shaped:
        """The flow in a section, and its matrix's shape."""
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
    theirs, ours = [flow for flow, _ in teacher], [flow for flow, _ in student]
    orders = drawn_orders(shuffle, [pair.teacher for pair in pairs], theirs, setting.seed if setting else 0)
    return FSPLoss(theirs, ours, alphas, orders)


def check_channels(
    teacher: Sequence[Shaped],
    student: Sequence[Shaped],
    kind: str,
    names: Sequence[object],
    who: str = "FSP",
    optional: bool = True,
) -> None:
    """Eq. 2 subtracts matrices, so their shapes must agree.

    kind, names: what the flows are to the user, ``section`` 0, 1, 2; an option called ``sections`` may choose among them,
    unless not ``optional``. who: the knowledge.
    Raises: ShapeError naming every flow at fault.
    """
    wrong, fit = [], []
    for name, (its, (m, n)), (own, (i, j)) in zip(names, teacher, student, strict=True):
        if (m, n) == (i, j):
            fit.append(name)
        else:
            wrong.append(
                f"{kind} {name}: {m}x{n} in the teacher ({its.front} -> {its.back}), "
                f"{i}x{j} in the student ({own.front} -> {own.back})"
            )
    if wrong:
        subset = f", or train only what fits: '{kind}s: {fit}'" if fit and optional else ""
        raise ShapeError(
            f"{who} needs equal channels, but its matrices differ in {'; in '.join(wrong)}. "
            f"Give the student the teacher's widths{subset}, or transfer what needs no equal channels, "
            "such as 'attention'."
        )


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
    transfers="FSP matrices beside the task, their gradient clipped to the task's",
    needs=SAME_CHANNELS,
    paper="Yim et al. 2017; Lee et al. 2018",
)
def _joint() -> tuple[Stage, ...]:
    return clipped(FSP())


@register_method(
    "fsp-shuffled",
    transfers="FSP matrices with the teacher's channels in another order, for students that differ",
    needs=SAME_CHANNELS,
    paper="Yim et al. 2017",
)
def _shuffled() -> tuple[Stage, ...]:
    return before_task(FSP(shuffle="realisable"))
