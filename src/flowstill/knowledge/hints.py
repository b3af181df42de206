"""FitNet hints: a layer inside the student learns to output what a layer inside the teacher outputs.

Romero, Ballas, Kahou, Chassang, Gatta, Bengio: "FitNets: Hints for Thin Deep Nets", ICLR 2015, Eq. 3, as the baseline
of Yim et al. (2017, section 4): 35k iterations before the task, at a learning rate of 1e-4, 1e-5 after 25k, which goes
with a loss that is summed over a map's entries. Their second stage adds ``soft_logits`` (temperature 3, cross-entropy,
not squared) with a weight that falls from 4 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from flowstill.features.pairs import Pairs
from flowstill.features.sections import Section
from flowstill.features.taps import Reading, Tap
from flowstill.features.tracing import find_trunk
from flowstill.features.trunk import Trunk, TrunkMap
from flowstill.knowledge.logits import SoftLogits
from flowstill.knowledge.maps import MapsLoss, precise, same_size
from flowstill.knowledge.numbered import check_in_range, check_numbers, end_below
from flowstill.schema import specification
from flowstill.transfer.knowledge import Knowledge, Setting, register
from flowstill.transfer.methods import TASK, TASK_LR, register_method
from flowstill.transfer.procedures import cyclic, joint, schedule
from flowstill.transfer.schedules import Linear
from flowstill.transfer.stages import Stage, Term

Shape = tuple[int, int, int]


def hint_loss(guided: Tensor, hint: Tensor, sum: bool = True) -> Tensor:
    """Squared L2 distance between the student's guided map and the teacher's hint, Eq. 3 without its constant.

    Args:
        guided: (B, C, H, W).
        hint: (B, C, H, W).
        sum: sum over each image's entries; False takes their mean.

    Returns:
        A scalar, float32 or better: mean over the batch.

    >>> guided, hint = torch.full((5, 2, 3, 3), 3.0), torch.ones(5, 2, 3, 3)
    >>> hint_loss(guided, hint).item(), hint_loss(guided, hint, sum=False).item()
    (72.0, 4.0)
    """
    errors = (precise(guided) - precise(hint)).square()
    return errors.sum() / len(errors) if sum else errors.mean()


def blocks(network: nn.Module, section: Section, shape: Shape) -> list[tuple[Tap, Shape]]:
    """The outputs of a section's blocks, in order; without blocks, of its convolutions with their activations.

    A block is a module with several kernels that every path passes, such as a residual block or an inception cell. The
    last output is the section's exit, the only one if the section's taps were named by hand.

    Args:
        network: that the section belongs to.
        section: one of its sections.
        shape: (C, H, W) of the images.

    Returns:
        Taps with the shapes of their maps.
    """
    exit_ = (section.exit, section.exit_shape)
    if section.first == section.entry:  # named by hand: a section that was found has a block between the two
        return [exit_]
    trunk = find_trunk(network, shape)
    end, last = _map_at(trunk, section.entry), _map_at(trunk, section.exit)
    run = next(run for run in trunk.runs() if last in run)
    outputs: list[tuple[Tap, Shape]] = []
    while trunk.spatial(end.index, last.index):  # what follows the last spatial kernel belongs to its block
        before, end = end, trunk.first(run, end, last)
        outputs.append((end.tap(before.index), end.shape))
    return [*outputs[:-1], exit_]


def middle_block(network: nn.Module, section: Section, shape: Shape) -> tuple[Tap, Shape]:
    """The output of block ceil(n / 2) of the section's n blocks, and its shape.

    >>> import flowstill as fs
    >>> resnet26 = fs.create("resnet26")
    >>> middle_block(resnet26, fs.find_sections(resnet26, (3, 32, 32))[1], (3, 32, 32))
    (Tap(path='layer2.1', at='output'), (32, 16, 16))
    """
    outputs = blocks(network, section, shape)
    return outputs[(len(outputs) - 1) // 2]


class HintsLoss(MapsLoss):
    """``hint_loss`` of each pair of layers, summed. Where channels differ, a regressor has the role ``adapters``.

    Args:
        hints: the teacher's taps with the shapes of their maps.
        guided: the student's.
        sum: as in ``hint_loss``.
    """

    def __init__(
        self, hints: Sequence[tuple[Tap, Shape]], guided: Sequence[tuple[Tap, Shape]], sum: bool = True
    ) -> None:
        super().__init__([tap for tap, _ in hints], [tap for tap, _ in guided])
        self.sum = sum
        channels = [(shape_s[0], shape_t[0]) for (_, shape_s), (_, shape_t) in zip(guided, hints, strict=True)]
        self.regressors = nn.ModuleList(
            nn.Identity() if student == teacher else nn.Conv2d(student, teacher, 1) for student, teacher in channels
        )

    def forward(self, student: Reading, target: Sequence[Tensor]) -> Tensor:
        """A float32 scalar, at least 0: mean over the batch."""
        losses = []
        for tap, regressor, hint in zip(self.student_taps, self.regressors, target, strict=True):
            guided, hint = same_size(student[tap], hint)
            losses.append(hint_loss(regressor(guided), hint, self.sum))
        return torch.stack(losses).sum()


@register
@specification
class Hints(Knowledge):
    """The teacher's maps themselves, at one layer or at the ends of sections.

    Where channels differ, a trainable 1x1 convolution on the student's map brings it to the teacher's width. Where
    sizes differ, the larger map is average-pooled to the smaller one's size.

    Attributes:
        layers: which maps are compared. ``middle``, the 1-loss FitNet: the output of block ceil(n / 2) of the middle
            section, where n is each network's own number of blocks; with taps named by hand, the section's back tap.
            ``sections``, the 3-loss FitNet: the outputs of all sections, summed. A list of section numbers, counted
            from 0: the outputs of these sections only; ``[1]`` is a hint at the end of the second section, which moves
            nothing above it.
        freeze_below: keep the student's sections below the first one in ``layers`` fixed in every update that contains
            this term. Needs section numbers in ``layers``, none of them 0.
        sum: sum the squared error over each image's entries, as the papers' squared norm does; ``false`` takes their
            mean, thousands of times smaller, which the learning rates of a task can take (see "Sum or mean" on the
            method's page).
    """

    summary: ClassVar[str] = "the maps of a middle layer, or of each section; any channels, any sizes"
    paper: ClassVar[str] = "Romero et al. 2015, FitNets: Hints for Thin Deep Nets"
    left_open: ClassVar[str] = "which layer a hint is"

    name: Literal["hints"] = "hints"
    layers: Literal["middle", "sections"] | tuple[Annotated[int, Field(ge=0)], ...] = "middle"
    freeze_below: bool = False
    sum: bool = True

    def __post_init__(self) -> None:
        numbers = self.layers if isinstance(self.layers, tuple) else None
        check_numbers("layers", numbers, self.freeze_below, "choose 'middle' or 'sections'")

    def build(self, pairs: Pairs, setting: Setting | None = None) -> HintsLoss:
        """The loss with its regressors. For ``middle`` both networks are read once, since the pairs do not hold blocks.

        Raises:
            ShapeError: there are no pairs.
            RecipeError: a section does not exist, or ``middle`` is built without a teacher in the setting.
        """
        self.require_pairs(pairs)
        if self.layers != "middle":
            numbers = range(len(pairs)) if self.layers == "sections" else self.layers
            check_in_range(self.name, "layers", numbers, pairs)
            chosen = [pairs[number] for number in numbers]
            ends = [[(side.exit, side.exit_shape) for side in (pair.teacher, pair.student)] for pair in chosen]
            loss = HintsLoss([end[0] for end in ends], [end[1] for end in ends], self.sum)
            if self.freeze_below:
                loss.frozen_below = end_below(pairs, min(numbers))
            return loss
        setting, teacher = self.require_teacher(setting)
        pair = pairs[(len(pairs) - 1) // 2]
        hint = middle_block(teacher, pair.teacher, setting.shown_to_teacher)
        return HintsLoss([hint], [middle_block(setting.student, pair.student, setting.shape)], self.sum)


def _map_at(trunk: Trunk, tap: Tap) -> TrunkMap:
    """The trunk's map that a tap reads. There is one, since both come from the same network."""

    def readers(m: TrunkMap) -> Sequence[str]:
        return m.feeds if tap.at == "input" else [call.path for call in m.makers]

    return next(m for m in trunk.maps if tap.path in readers(m))


HINTS, HINTS_LR = schedule((1e-4, 25_000), (1e-5, 35_000))


@register_method(
    "fitnet",
    transfers="the map of a middle layer, then soft logits together with the task",
    needs="sections; the same classes",
    paper="Romero et al. 2015; Yim et al. 2017",
)
def _one_hint() -> tuple[Stage, ...]:
    return _fitnet(Hints())


@register_method(
    "fitnet3",
    transfers="the maps at the ends of all sections, then soft logits together with the task",
    needs="sections; the same classes",
    paper="Romero et al. 2015; Yim et al. 2017",
)
def _hint_per_section() -> tuple[Stage, ...]:
    return _fitnet(Hints(layers="sections"))


def _fitnet(hints: Hints) -> tuple[Stage, ...]:
    """Hints first, then the labels with soft logits, as Yim et al. (2017) train their FitNets."""
    soft = Term(SoftLogits(temperature=3.0, divergence="cross_entropy", squared=False), Linear((4.0, 1.0)))
    return (*cyclic([hints], steps=HINTS, lr=HINTS_LR), *joint(soft, steps=TASK, lr=TASK_LR))
