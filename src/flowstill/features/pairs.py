"""Pair the sections of a teacher with a student's."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from flowstill.errors import NetworkError, ShapeError
from flowstill.features.kinds import WORDS
from flowstill.features.modules import Shape, shape_of, unwrapped
from flowstill.features.operations import Operations
from flowstill.features.sections import ENDS, Point, Section, find_sections, relative
from flowstill.features.taps import Reading, Tap, Tapped
from flowstill.features.tracing import example_images, read_once, undisturbed


@dataclass(frozen=True)
class SectionPair:
    """A section of the teacher and the student's section that learns from it.

    Attributes:
        teacher: the teacher's section.
        student: the student's section.
    """

    teacher: Section
    student: Section


Pairs = tuple[SectionPair, ...]


def pair_sections(
    teacher: nn.Module,
    student: nn.Module,
    example: Tensor | Sequence[int],
    student_example: Tensor | Sequence[int] | None = None,
) -> Pairs:
    """Pair each section of the student with the teacher's of the same relative size, keeping the order of both.

    Channels may differ. Sections without a partner are left out; ``unpaired`` lists them. Where one network's map is
    activated and the other's is not, both are read before the activation, if a tap can read there (``alike``).

    Args:
        teacher: the network to learn from.
        student: the network that learns.
        example: images (B, C, H, W), or a shape (C, H, W) or (B, C, H, W).
        student_example: likewise, for a student that sees images of another size; None for ``example``.

    Raises:
        NetworkError: a network has no sections, or no two sections fit.
    """
    shown = example if student_example is None else student_example
    return alike(align_sections(find_sections(teacher, example), find_sections(student, shown)))


def align_sections(teacher: Sequence[Section], student: Sequence[Section]) -> Pairs:
    """Pair sections that were already found, keeping the order of both.

    Two sections fit if their sizes, relative to the image, are less than half an octave or at most one pixel apart. Of
    all ways to pair them in order, the one with the most pairs wins, then the one with the closest sizes. Sizes after
    each section's pooling count instead if only they bring together equal channels throughout: one network pools after
    each block, the other strides inside it. If nothing fits but both have the same number of sections, sections pair by
    order alone.

    Args:
        teacher: the teacher's sections.
        student: the student's sections.

    Raises:
        NetworkError: no two sections fit.
    """
    pairs, by_pooled = _align(teacher, student, pooled=False), _align(teacher, student, pooled=True)
    if len(by_pooled) >= len(pairs) and all(map(_same_channels, by_pooled)) and not all(map(_same_channels, pairs)):
        pairs = by_pooled
    pairs = pairs or by_pooled
    if not pairs and len(teacher) == len(student):
        pairs = tuple(map(SectionPair, teacher, student))
    if not pairs:
        raise NetworkError(
            "Expected sections of teacher and student whose sizes, relative to the image, are less than a factor of "
            f"1.41 or at most one pixel apart. Received: Teacher: {_listed(teacher)}. Student: {_listed(student)}. "
            "Name the taps by hand: 'flows' of the job."
        )
    return pairs


def alike(pairs: Pairs) -> Pairs:
    """The same pairs, with maps of one kind at each tap of a pair wherever taps can read them.

    A map after its activation should meet another after its activation, and one before, one before. Of all taps that
    read the same map at the two ends, those that agree in this win, then those that agree in what made the map (a
    convolution, a normalisation), then those that move least.
    """
    return tuple(map(_alike, pairs))


def _alike(pair: SectionPair) -> SectionPair:
    teacher, student = pair.teacher, pair.student
    if not teacher.kinds or not student.kinds:
        return pair
    for end in range(len(ENDS)):
        ways = itertools.product(enumerate(teacher.readings(end)), enumerate(student.readings(end)))
        (_, one), (_, other) = max(ways, key=_likeness)
        teacher, student = teacher.read_at(end, *one), student.read_at(end, *other)
    return SectionPair(teacher, student)


def _likeness(way: tuple[tuple[int, Point], tuple[int, Point]]) -> tuple[bool, bool, int]:
    (i, (_, one)), (j, (_, other)) = way
    return (one == "activation") == (other == "activation"), one == other, -i - j


def unlike(pairs: Pairs) -> list[str]:
    """Sentences that say which taps read an activated map in one network and one before its activation in the other."""
    found: dict[tuple[str, str], list[str]] = {}
    seen: set[tuple[Tap, Tap]] = set()
    for pair in pairs:
        for name in ("entry", "exit"):
            taps = getattr(pair.teacher, name), getattr(pair.student, name)
            kinds = [section.kinds[ENDS.index(name)] for section in (pair.teacher, pair.student) if section.kinds]
            if kinds.count("activation") == 1 < len(kinds) and taps not in seen:
                found.setdefault((WORDS[kinds[0]], WORDS[kinds[1]]), []).append(f"{taps[0]} and {taps[1]}")
            seen.add(taps)
    return [
        f"after {one} in the teacher, after {other} in the student: {', '.join(taps)}"
        for (one, other), taps in found.items()
    ]


def _listed(sections: Sequence[Section]) -> str:
    return ", ".join(f"{s.exit} {s.size[0]}x{s.size[1]}" for s in sections) or "none"


def unpaired(sections: Iterable[Section], pairs: Pairs) -> list[Section]:
    """The teacher's or student's sections that are in no pair."""
    paired = [section for pair in pairs for section in (pair.teacher, pair.student)]
    return [section for section in sections if all(section is not other for other in paired)]


def _align(teacher: Sequence[Section], student: Sequence[Section], pooled: bool) -> Pairs:
    """The longest sequence of pairs in order; of several, the one with the closest sizes."""

    @functools.cache
    def best(i: int, j: int) -> tuple[int, float, Pairs]:
        """Number of pairs from sections i and j on, their closeness (0 is closest), and the pairs."""
        if i == len(teacher) or j == len(student):
            return 0, 0.0, ()
        ways = [best(i + 1, j), best(i, j + 1)]
        octaves = _octaves_apart(teacher[i], student[j], pooled)
        if octaves is not None:
            count, closeness, pairs = best(i + 1, j + 1)
            ways.append((count + 1, closeness - octaves, (SectionPair(teacher[i], student[j]), *pairs)))
        return max(ways, key=lambda way: way[:2])

    return best(0, 0)[2]


def _octaves_apart(teacher: Section, student: Section, pooled: bool) -> float | None:
    """How far apart their relative sizes are, on the axis that differs most; None if they do not fit."""
    widest = 0.0
    for axis in (0, 1):
        scales = [(s.pooled_scale if pooled and s.pooled_scale else s.scale)[axis] for s in (teacher, student)]
        pixel = max(s.scale[axis] / s.size[axis] for s in (teacher, student))
        octaves = abs(math.log2(scales[0] / scales[1]))
        if octaves >= 0.5 and abs(scales[0] - scales[1]) > pixel * (1 + 1e-6):
            return None
        widest = max(widest, octaves)
    return widest


def _same_channels(pair: SectionPair) -> bool:
    teacher, student = pair.teacher, pair.student
    return (teacher.entry_shape[0], teacher.exit_shape[0]) == (student.entry_shape[0], student.exit_shape[0])


def pairs_by_hand(
    teacher: nn.Module,
    student: nn.Module,
    example: Tensor | Sequence[int],
    flows: Sequence[tuple[tuple[str, str], tuple[str, str]]],
    student_example: Tensor | Sequence[int] | None = None,
) -> Pairs:
    """Pair sections whose taps are given.

    Shapes are read by one forward of each network; the ``first`` of such a section is its front.

    Args:
        teacher: the network to learn from.
        student: the network that learns.
        example: images (B, C, H, W), or a shape (C, H, W) or (B, C, H, W).
        flows: for each pair the teacher's (front, back), then the student's.
        student_example: likewise, for a student that sees images of another size; None for ``example``.

    Raises:
        TapError: a tap cannot be read.
        ShapeError: a tap gives no feature map, or one whose channels are not axis 1.
        NetworkError: a network cannot take the example.
    """
    taught = _by_hand(teacher, example, [flow[0] for flow in flows])
    learning = _by_hand(student, example if student_example is None else student_example, [flow[1] for flow in flows])
    return tuple(map(SectionPair, taught, learning))


def _by_hand(network: nn.Module, example: Tensor | Sequence[int], flows: Sequence[tuple[str, str]]) -> list[Section]:
    images, axes = example_images(network, example), Operations()
    tapped = Tapped(unwrapped(network), [tap for flow in flows for tap in flow])
    with undisturbed(network, images.device), axes:
        # A network may write into its input; with a gradient, the channels can be followed.
        reading = read_once(tapped, images.detach().clone().requires_grad_().clone())
    sections = []
    for front, back in flows:
        entry, exit_ = (_checked_shape(network, tap, reading, axes) for tap in (front, back))
        taps = (Tap.parse(front), Tap.parse(front), Tap.parse(back))
        sections.append(Section(*taps, entry, entry, exit_, relative(exit_[1:], (images.shape[2], images.shape[3]))))
    return sections


def _checked_shape(network: nn.Module, tap: str, reading: Reading, axes: Operations) -> Shape:
    maps = reading[tap]
    said = f"Tap '{tap}' of {type(network).__name__}: expected a feature map (B, D, H, W). Received: shape "
    said += f"{tuple(maps.shape)}"
    if maps.dim() == 3:
        raise ShapeError(
            f"{said}, most likely tokens (B, N, D) without a grid. Name a layer that puts out maps, or choose "
            "knowledge that reads no sections, such as 'soft_logits'."
        )
    if maps.dim() != 4:
        raise ShapeError(f"{said}. Name a layer before the flattening.")
    if len(maps) != len(reading.images):
        raise ShapeError(
            f"{said}: not one map for each of {len(reading.images)} images, but maps of their parts, such as windows or "
            "heads. Name the block around this layer."
        )
    if axes.channel_axis(maps) == 3:
        raise ShapeError(
            f"{said}, with the channels as the last axis: a map (B, H, W, D). Name a layer that puts out channels first, "
            "such as one after a permutation of the axes, or choose knowledge that reads no sections, such as "
            "'soft_logits'."
        )
    return shape_of(maps)
