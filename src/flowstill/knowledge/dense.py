"""Densely distilled flows: FSP matrices over all spans of sections, all at once or step by step up the network.

Yeo, Bae, Yim et al.: "Sequential Knowledge Transfer in Teacher-Student Framework Using Densely Distilled Flow-Based
Information", ICIP 2018, and the same group in IEEE Transactions on Image Processing 29, 2020. FSP has one matrix per
section; here flows overlap: from where any section starts to where it, or a later one, ends. They train together, or in
steps that move up the network.

This is a reconstruction: the slides show three copies of the chapters to be learnt in step 1, two in step 2 and one in
step 3, and no formula. Flows that start at the s-th section (``anchor: start``) give these counts. Flows that end at
the s-th (``anchor: end``) would give one, two and three, and move up the network more naturally. Whatever is grey on a
slide may be frozen (``freeze_below``) or simply not trained in that step. We read "iteratively and sequentially" as
steps that take turns batch by batch (``flowstill.transfer.procedures.cyclic``); ``blocks`` runs them one after another.

How strong a flow is, is open too. To compare the ways of training flows and not their strength, the methods here, and the
tables, weigh each flow as FSP does (``weighting: fsp``). FSP's alpha is a = 1 / sum_i m_i n_i over the n sections' own
matrices, and in n updates a flow's gradient g adds up to n a g. Dense flows, which train in every update, reach that with
the same a for each span; steps in turn, which train each span once in n updates, with n a. For a CIFAR ResNet these are
1/2816 and 3/2816. ``equal`` spreads FSP's whole weight over all spans instead, 1/5376, whether they train in every update
or in every third, which leaves a step's flow 2816 / (3 * 5376) = 0.175 of FSP's gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from flowstill.errors import RecipeError
from flowstill.features.pairs import Pairs
from flowstill.features.sections import Section
from flowstill.features.taps import Flow
from flowstill.knowledge.flows import Factors, Shaped, check_channels, flow_weights
from flowstill.knowledge.fsp import FSPLoss, build_loss
from flowstill.knowledge.numbered import end_below
from flowstill.knowledge.shuffling import Shuffle
from flowstill.schema import specification
from flowstill.transfer.knowledge import Knowledge, Setting, register
from flowstill.transfer.methods import FLOW, FLOW_LR, SAME_CHANNELS, TASK, TASK_LR, before_task, register_method
from flowstill.transfer.procedures import alone, cyclic
from flowstill.transfer.stages import Stage

Anchor = Literal["start", "end"]
DenseWeighting = Literal["equal", "fsp", "sum", "element_mean"] | Factors
Span = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


def all_spans(n: int) -> tuple[Span, ...]:
    """Every (a, b) with 0 <= a < b <= n, all n(n + 1)/2 spans over n sections.

    >>> all_spans(3)
    ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    """
    return tuple((a, b) for a in range(n) for b in range(a + 1, n + 1))


def step_spans(n: int, step: int, anchor: Anchor = "start") -> tuple[Span, ...]:
    """The spans of one step; with either anchor each span of the whole set belongs to exactly one step.

    Args:
        n: number of sections.
        step: 1 to n.
        anchor: ``start``, the spans that start where section ``step`` does; ``end``, those that end where it ends.

    Raises:
        RecipeError: there is no such step.

    >>> [step_spans(3, step) for step in (1, 2, 3)]
    [((0, 1), (0, 2), (0, 3)), ((1, 2), (1, 3)), ((2, 3),)]
    >>> [step_spans(3, step, "end") for step in (1, 2, 3)]
    [((0, 1),), ((0, 2), (1, 2)), ((0, 3), (1, 3), (2, 3))]
    """
    if not 1 <= step <= n:
        raise RecipeError(
            f"dense: no step {step}: the networks pair in {n} sections, so steps run from 1 to {n}; change 'step'."
        )
    return tuple((a, b) for a, b in all_spans(n) if step == (a + 1 if anchor == "start" else b))


@register
@specification
class Dense(Knowledge):
    """Pulls the student's FSP matrices over overlapping spans of sections towards the teacher's; needs no labels.

    Over the n sections in which the networks pair there are taps X_0 to X_n: X_0 is what enters the first section, X_i
    what leaves the i-th. That holds also for taps named by hand, and where an unpaired section lies between two, so
    that the next section's own entry is another map. The matrix of a span (a, b) is taken between X_a, max-pooled to
    the size of X_b, and X_b.

    Attributes:
        weighting: the alpha of Eq. 2 for each span. ``equal``: 1 over the number of entries of the matrices of *all*
            spans, whether trained or not, so that the losses of the steps sum to the dense loss. ``fsp``: that of FSP,
            1 over the number of entries of the sections' own matrices; n times that for a ``step``, which has one
            update in n, so that each flow's gradient, summed over a cycle, is as strong as FSP's. ``sum``: 1.
            ``element_mean``: 1 over the number of entries of each matrix. Or numbers: one for each of ``spans`` if
            these are given; otherwise one for each span of the whole set, in the order of ``all_spans``, also where
            only one step is trained.
        spans: pairs (a, b) to train, 0 <= a < b <= n, for flows from X_a to X_b; None for all, or for those of
            ``step``.
        step: train only the spans of this step, 1 to n; None for all spans.
        anchor: which spans belong to step s: those that ``start`` where the s-th section starts, or those that ``end``
            where it ends.
        freeze_below: keep the student's parameters that X_{step-1} depends on fixed in every update that contains this
            term: no gradient, decay or momentum moves them. BatchNorm's running statistics are not parameters and still
            update. Step 1 freezes nothing.
        shuffle: reorder the teacher's channels, by an order drawn once per stage from the job's seed and shared by the
            stage's steps. ``realisable``: an order that a network of the teacher's kind can have. ``independent``: one
            order per tap. ``per_matrix``: one order for the rows and one for the columns of each matrix. None keeps the
            teacher's order.
    """

    summary: ClassVar[str] = "how features flow over all overlapping spans of sections; needs equal channels"
    paper: ClassVar[str] = "Yeo et al., ICIP 2018"
    left_open: ClassVar[str] = "which flows a step has"

    name: Literal["dense"] = "dense"
    weighting: DenseWeighting = "equal"
    spans: tuple[Span, ...] | None = None
    step: Annotated[int, Field(ge=1)] | None = None
    anchor: Anchor = "start"
    freeze_below: bool = False
    shuffle: Shuffle | None = None

    def __post_init__(self) -> None:
        if self.spans is not None and self.step is not None:
            raise ValueError(f"step {self.step} selects its own spans; give 'step' or 'spans', not both")
        if self.step is None and (self.freeze_below or self.anchor != "start"):
            option = "freeze_below" if self.freeze_below else "anchor"
            raise ValueError(f"{option!r} needs a step; add 'step', or leave it out")
        if self.spans is not None and not 0 < len(self.spans) == len(set(self.spans)):
            raise ValueError(f"spans {self.spans}: list at least one span, each once; or leave it out for all of them")
        for a, b in self.spans or ():
            if a >= b:
                raise ValueError(f"span {a, b} ends before it starts; a span (a, b) runs from X_a to X_b, a < b")

    def build(self, pairs: Pairs, setting: Setting | None = None) -> FSPLoss:
        """The loss for these pairs of sections.

        Raises:
            ShapeError: there are no pairs, or a teacher's matrix has another shape than its student's.
            RecipeError: a step or span does not exist, or the number of weights is not the number of spans.
        """
        n = len(self.require_pairs(pairs))
        spans = self.spans or (step_spans(n, self.step, self.anchor) if self.step else all_spans(n))
        for span in spans:
            if span[1] > n:
                raise RecipeError(
                    f"dense: no span {span}: the networks pair in {n} sections, so spans end at {n} at most; "
                    "change 'spans'."
                )
        teacher, student = [pair.teacher for pair in pairs], [pair.student for pair in pairs]
        flows_t, flows_s = ([_flow(sections, span) for span in spans] for sections in (teacher, student))
        check_channels(self.name, flows_t, flows_s, "span", [list(span) for span in spans], self.step is None)
        loss = build_loss(pairs, flows_t, flows_s, self._alphas(teacher, spans), self.shuffle, setting)
        if self.freeze_below and self.step and self.step > 1:
            loss.frozen_below = end_below(pairs, self.step - 1)
        return loss

    def _alphas(self, teacher: Sequence[Section], spans: Sequence[Span]) -> list[float]:
        """The weights of ``spans``, which may be some of the weighted ones."""
        if self.weighting == "fsp":
            n = len(teacher)
            alpha, *_ = flow_weights("equal", [_flow(teacher, (i, i + 1))[1] for i in range(n)])
            return [alpha * n if self.step else alpha] * len(spans)
        numbered = isinstance(self.weighting, tuple)
        weighted = self.spans if numbered and self.spans else all_spans(len(teacher))
        if numbered and len(self.weighting) != len(weighted):
            raise RecipeError(
                f"dense: weighting has {len(self.weighting)} numbers {self.weighting}, but there are {len(weighted)} "
                f"spans; give one for each of {list(weighted)}, in that order, or 'equal'."
            )
        alphas = flow_weights(self.weighting, [_flow(teacher, span)[1] for span in weighted])
        weight = dict(zip(weighted, alphas, strict=True))
        return [weight[span] for span in spans]


def _flow(sections: Sequence[Section], span: Span) -> Shaped:
    """The flow from X_a to X_b, and the shape of its matrix."""
    taps = [sections[0].entry, *(section.exit for section in sections)]
    channels = [sections[0].entry_shape[0], *(section.exit_shape[0] for section in sections)]
    a, b = span
    return Flow(taps[a], taps[b]), (channels[a], channels[b])


@register_method(
    "dense",
    transfers="FSP matrices over all spans of sections, before the task",
    needs=SAME_CHANNELS,
    paper="Yeo et al. 2018",
    reconstruction=True,
)
def _before_task() -> tuple[Stage, ...]:
    return before_task(Dense(weighting="fsp"))


@register_method(
    "dense-sequential",
    transfers="FSP matrices over all spans of sections, in steps from the bottom to the top, before the task",
    needs=SAME_CHANNELS,
    paper="Yeo et al. 2018",
    reconstruction=True,
)
def _sequential(sections: int) -> tuple[Stage, ...]:
    steps = [Dense(weighting="fsp", step=step) for step in range(1, sections + 1)]
    return (*cyclic(steps, steps=FLOW, lr=FLOW_LR), *alone(TASK, TASK_LR))
