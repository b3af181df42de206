"""FitNet hints: a layer inside the student learns to give what a layer inside the teacher gives.

Romero, Ballas, Kahou, Chassang, Gatta, Bengio: "FitNets: Hints for Thin Deep Nets", ICLR 2015, Eq. 3, as the baseline of
Yim et al. (2017, section 4): 35k iterations before the task, at a learning rate of 1e-4, 1e-5 after 25k. Their second
stage adds ``soft_logits`` (temperature 3, cross-entropy, not squared) with a weight that falls from 4 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from flowstill.data.batch import Batch
from flowstill.errors import RecipeError
from flowstill.features.sections import Pairs, Section
from flowstill.features.taps import Reading, Tap
from flowstill.features.tracing import find_trunk
from flowstill.features.trunk import Trunk, TrunkMap
from flowstill.knowledge.logits import SoftLogits
from flowstill.schema import specification
from flowstill.transfer.knowledge import Knowledge, Loss, Setting, register
from flowstill.transfer.methods import TASK, TASK_LR, register_method
from flowstill.transfer.procedures import cyclic, joint, schedule
from flowstill.transfer.schedules import Linear
from flowstill.transfer.stages import Stage, Term

Shape = tuple[int, int, int]


def hint_loss(guided: Tensor, hint: Tensor, sum: bool = False) -> Tensor:
    """Squared L2 distance of the student's guided map and the teacher's hint, Eq. 3 without its constant.

    Args: guided, hint (B, C, H, W) of one shape. sum: over the elements of an image, instead of their mean.
    Returns: a scalar, float32 or better: mean over the batch.

    >>> guided, hint = torch.full((5, 2, 3, 3), 3.0), torch.ones(5, 2, 3, 3)
    >>> hint_loss(guided, hint).item(), hint_loss(guided, hint, sum=True).item()
    (4.0, 72.0)
    """
    errors = (_precise(guided) - _precise(hint)).square()
    return errors.sum() / len(errors) if sum else errors.mean()


def blocks(network: nn.Module, section: Section, shape: Shape) -> list[tuple[Tap, Shape]]:
    """The outputs of a section's blocks, in order; of its convolutions with their activations where it has no blocks.

    A block is a module with several kernels that every path passes (a residual block, an inception cell). The last
    output is the section's exit. Of a section whose taps were named by hand there is that one alone.

    Args: shape (C, H, W) of the images. Returns: taps with the maps' shapes.
    """
    exit_ = (section.exit, section.exit_shape)
    if section.first == section.entry:  # a section that was found has a block between the two
        return [exit_]
    trunk = find_trunk(network, shape)
    end, last = _map_at(trunk, section.entry), _map_at(trunk, section.exit)
    run = next(run for run in trunk.runs() if last in run)
    found: list[tuple[Tap, Shape]] = []
    while trunk.spatial(end.index, last.index):  # what follows the last spatial kernel belongs to its block
        before, end = end, trunk.first(run, end, last)
        found.append((end.tap(before.index), end.shape))
    return [*found[:-1], exit_]


def middle_block(network: nn.Module, section: Section, shape: Shape) -> tuple[Tap, Shape]:
    """The output of block ceil(n / 2) of the section's n, and its shape.

    >>> import flowstill as fs
    >>> resnet26 = fs.create("resnet26")
    >>> middle_block(resnet26, fs.find_sections(resnet26, (3, 32, 32))[1], (3, 32, 32))
    (Tap(path='layer2.1', at='output'), (32, 16, 16))
    """
    found = blocks(network, section, shape)
    return found[(len(found) - 1) // 2]


class HintsLoss(Loss):
    """``hint_loss`` of each pair of layers, summed. Regressors, where channels differ, have the role ``adapters``.

    hints, guided: the teacher's and the student's taps with the shapes of their maps.
    """

    storable = True

    def __init__(
        self, hints: Sequence[tuple[Tap, Shape]], guided: Sequence[tuple[Tap, Shape]], sum: bool = False
    ) -> None:
        super().__init__()
        self.teacher_taps, self.student_taps = tuple(tap for tap, _ in hints), tuple(tap for tap, _ in guided)
        self.sum = sum
        channels = [(ours[0], theirs[0]) for (_, ours), (_, theirs) in zip(guided, hints, strict=True)]
        self.regressors = nn.ModuleList(
            nn.Identity() if ours == theirs else nn.Conv2d(ours, theirs, 1) for ours, theirs in channels
        )

    def target(self, teacher: Reading | None, batch: Batch | None = None) -> tuple[Tensor, ...]:
        """The teacher's hints."""
        assert teacher is not None
        return tuple(teacher[tap].detach() for tap in self.teacher_taps)

    def forward(self, student: Reading, target: Sequence[Tensor]) -> Tensor:
        """A float32 scalar, at least 0: mean over the batch."""
        losses = []
        for tap, regressor, hint in zip(self.student_taps, self.regressors, target, strict=True):
            guided, hint = _same_size(student[tap], hint)
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
        sum: sum the squared error over each image's elements, as a squared L2 norm is written, instead of taking the
            mean, which keeps one scale for maps of any size.
    """

    summary: ClassVar[str] = "the maps of a middle layer, or of each section; any channels, any sizes"
    paper: ClassVar[str] = "Romero et al. 2015, FitNets: Hints for Thin Deep Nets"
    left_open: ClassVar[str] = "which layer a hint is"

    name: Literal["hints"] = "hints"
    layers: Literal["middle", "sections"] | tuple[Annotated[int, Field(ge=0)], ...] = "middle"
    freeze_below: bool = False
    sum: bool = False

    def __post_init__(self) -> None:
        if self.freeze_below and not (isinstance(self.layers, tuple) and self.layers and min(self.layers)):
            raise ValueError(
                "'freeze_below' says something of sections above the first; give their numbers as 'layers', or "
                "leave it out"
            )
        if isinstance(self.layers, tuple) and not 0 < len(self.layers) == len(set(self.layers)):
            raise ValueError(
                f"layers {self.layers}: name at least one section, and none twice; or choose 'middle' or 'sections'"
            )

    def build(self, pairs: Pairs, setting: Setting | None = None) -> HintsLoss:
        """The loss with its regressors. For the middle layer, networks are read once (their blocks are not in the pairs).

        Raises: RecipeError without sections, for a section that does not exist, or if the middle block is wanted and the
        networks are not given.
        """
        if not pairs:
            raise RecipeError(
                "hints compares sections, but none of the teacher's was paired with one of the student's."
            )
        if self.layers != "middle":
            numbers = range(len(pairs)) if self.layers == "sections" else self.layers
            if max(numbers) >= len(pairs):
                raise RecipeError(
                    f"hints: no section {max(numbers)}: the networks pair in {len(pairs)} sections, numbered "
                    f"from 0 to {len(pairs) - 1}; change 'layers'."
                )
            chosen = [pairs[number] for number in numbers]
            ends = [[(side.exit, side.exit_shape) for side in (pair.teacher, pair.student)] for pair in chosen]
            loss = HintsLoss([end[0] for end in ends], [end[1] for end in ends], self.sum)
            if self.freeze_below:
                loss.frozen_below = pairs[min(numbers) - 1].student.exit
            return loss
        if setting is None or setting.teacher is None:
            raise RecipeError(
                "hints finds the middle block in the networks themselves: build it with a Setting that has "
                "both, or choose 'layers: sections'."
            )
        pair = pairs[(len(pairs) - 1) // 2]
        hint = middle_block(setting.teacher, pair.teacher, setting.shape)
        return HintsLoss([hint], [middle_block(setting.student, pair.student, setting.shape)], self.sum)


def _map_at(trunk: Trunk, tap: Tap) -> TrunkMap:
    """The trunk's map that a tap reads; both come of the same network, so there is one."""

    def readers(m: TrunkMap) -> Sequence[str]:
        return m.feeds if tap.at == "input" else [call.path for call in m.makers]

    return next(m for m in trunk.maps if tap.path in readers(m))


def _same_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller's height and width, by average pooling."""
    size = (min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3]))
    pooled = [maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size) for maps in (one, other)]
    return pooled[0], pooled[1]


def _precise(maps: Tensor) -> Tensor:
    """In float32 or better."""
    return maps if maps.dtype == torch.float64 else maps.float()


HINTS, HINTS_LR = schedule((1e-4, 25_000), (1e-5, 35_000))


@register_method(
    "fitnet",
    transfers="the map of a middle layer, then soft logits beside the task",
    needs="sections; the same classes",
    paper="Romero et al. 2015; Yim et al. 2017",
)
def _one_hint() -> tuple[Stage, ...]:
    return _fitnet(Hints())


@register_method(
    "fitnet3",
    transfers="the maps of all sections' ends, then soft logits beside the task",
    needs="sections; the same classes",
    paper="Romero et al. 2015; Yim et al. 2017",
)
def _hint_per_section() -> tuple[Stage, ...]:
    return _fitnet(Hints(layers="sections"))


def _fitnet(hints: Hints) -> tuple[Stage, ...]:
    """Hints first; then the labels with soft logits, as Yim et al. (2017) train their FitNets."""
    soft = Term(SoftLogits(temperature=3.0, divergence="cross_entropy", squared=False), Linear((4.0, 1.0)))
    return (*cyclic([hints], steps=HINTS, lr=HINTS_LR), *joint(soft, steps=TASK, lr=TASK_LR))
