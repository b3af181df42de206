"""Find a network's sections by one forward, and pair a teacher's with a student's."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowstill.errors import NetworkError, ShapeError
from flowstill.features.modules import unwrapped
from flowstill.features.taps import Flow, Tap, Tapped
from flowstill.features.tracing import example_images, find_trunk, read_once, undisturbed
from flowstill.features.trunk import Trunk


@dataclass(frozen=True)
class Section:
    """A run of modules whose outputs share one spatial size.

    entry: what comes into the section (the stem's activation, or the last output of the section before).
    first: the output of its first block. exit: its last output. Shapes are (channels, height, width).
    scale: height and width of the exit over the image's. pooled_scale: the same after the pooling that follows the
    exit, where one does (VGG).
    """

    entry: Tap
    first: Tap
    exit: Tap
    entry_shape: tuple[int, int, int]
    first_shape: tuple[int, int, int]
    exit_shape: tuple[int, int, int]
    scale: tuple[float, float]
    pooled_scale: tuple[float, float] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that the section's maps share."""
        return self.exit_shape[1:]

    @property
    def flow(self) -> Flow:
        """Section input -> section output."""
        return Flow(self.entry, self.exit)

    def __str__(self) -> str:
        return f"{self.entry} -> {self.exit} ({self.size[0]}x{self.size[1]})"


@dataclass(frozen=True)
class SectionPair:
    """A teacher's section and the student's that answers to it."""

    teacher: Section
    student: Section


Pairs = tuple[SectionPair, ...]


def find_sections(network: nn.Module, example: Tensor | Sequence[int]) -> list[Section]:
    """The sections of a convolutional network, from image to logits, by one forward in eval mode.

    What belongs to the stem alone, to pooling or to the classifier's head is no section. Sizes less than half an octave
    apart count as one (unpadded convolutions). The network is left as it was.

    Args: example (B, C, H, W), or a shape (C, H, W) or (B, C, H, W); network and example may be on ``meta``.
    Raises: NetworkError if there are no sections, or the network cannot take the example.

    >>> network = nn.Sequential(
    ...     nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
    ...     nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    >>> [str(section) for section in find_sections(network, (3, 32, 32))]
    ['1 -> 3 (32x32)', '3 -> 5 (16x16)']
    """
    trunk = find_trunk(network, example)
    runs = trunk.runs()
    sections: list[Section] = []
    if runs:
        entry = trunk.activation(runs[0], trunk.convolutions[0].index)
        entry_tap = entry.tap()
    for run, following in itertools.zip_longest(runs, runs[1:]):
        last = trunk.last(run, following, entry)
        if last.index <= entry.index:
            continue  # the stem alone
        exit_tap = last.tap(entry.index)
        if trunk.works(run, entry, last):
            first, pooled = trunk.first(run, entry, last), trunk.pooled(last)
            taps, shapes = (entry_tap, first.tap(entry.index), exit_tap), (entry.shape, first.shape, last.shape)
            pooled_scale = _over(pooled.size, trunk.image) if pooled else None
            sections.append(Section(*taps, *shapes, _over(last.size, trunk.image), pooled_scale))
        entry, entry_tap = last, exit_tap
    if not sections:
        raise NetworkError(_nothing_found(network, trunk))
    return sections


def _nothing_found(network: nn.Module, trunk: Trunk) -> str:
    sizes = dict.fromkeys(f"{m.size[0]}x{m.size[1]}" for m in trunk.maps if trunk.between(-1, m.index))
    maps = f"maps of {', '.join(sizes)}" if sizes else "no map that a tap can read"
    return (
        f"No sections found in {type(network).__name__}: a section is a run of convolutions whose maps share a size, "
        f"but the forward shows {len(trunk.convolutions)} 2-D convolutions and {maps}. "
        "Name the taps by hand: 'flows' of the job."
    )


def _over(size: tuple[int, int], image: tuple[int, int]) -> tuple[float, float]:
    return size[0] / image[0], size[1] / image[1]


def pair_sections(teacher: nn.Module, student: nn.Module, example: Tensor | Sequence[int]) -> Pairs:
    """Each section of the student with the teacher's that answers to it, by order and relative size.

    Channels may differ. Sections that find no partner are left out; ``unpaired`` tells which.
    Raises: NetworkError if a network has no sections, or none of one fits any of the other.
    """
    return align_sections(find_sections(teacher, example), find_sections(student, example))


def align_sections(teacher: Sequence[Section], student: Sequence[Section]) -> Pairs:
    """Pair sections that were found, keeping the order of both.

    Two fit if their sizes, relative to the image, are less than half an octave or at most one pixel apart. Of all ways
    to pair them in order, that with the most pairs is taken, then that with the closest sizes. Sizes after each
    section's pooling count instead where only they bring together equal channels throughout: a network that pools after
    each block, and one that strides in it. Where nothing fits but both have equally many, sections pair by order alone.

    Raises: NetworkError naming the sizes of both.
    """
    pairs, by_pooled = _align(teacher, student, pooled=False), _align(teacher, student, pooled=True)
    if len(by_pooled) >= len(pairs) and all(map(_same_channels, by_pooled)) and not all(map(_same_channels, pairs)):
        pairs = by_pooled
    pairs = pairs or by_pooled
    if not pairs and len(teacher) == len(student):
        pairs = tuple(map(SectionPair, teacher, student))
    if not pairs:
        theirs, ours = (", ".join(f"{s.exit} {s.size[0]}x{s.size[1]}" for s in each) for each in (teacher, student))
        raise NetworkError(
            f"No section of the student has the size of one of the teacher's. Teacher: {theirs or 'none'}. "
            f"Student: {ours or 'none'}. Relative to the image they must be less than a factor of 1.41, or at most one "
            "pixel, apart. Name the taps by hand: 'flows' of the job."
        )
    return pairs


def unpaired(sections: Iterable[Section], pairs: Pairs) -> list[Section]:
    """Those of a teacher's or student's sections that no pair holds."""
    paired = [section for pair in pairs for section in (pair.teacher, pair.student)]
    return [section for section in sections if all(section is not other for other in paired)]


def _align(teacher: Sequence[Section], student: Sequence[Section], pooled: bool) -> Pairs:
    """The longest row of pairs in order, and of these the closest."""

    @functools.cache
    def best(i: int, j: int) -> tuple[int, float, Pairs]:
        """How many pairs from the i-th and j-th on, how close (0 is closest), and which."""
        if i == len(teacher) or j == len(student):
            return 0, 0.0, ()
        ways = [best(i + 1, j), best(i, j + 1)]
        octaves = _octaves_between(teacher[i], student[j], pooled)
        if octaves is not None:
            count, closeness, pairs = best(i + 1, j + 1)
            ways.append((count + 1, closeness - octaves, (SectionPair(teacher[i], student[j]), *pairs)))
        return max(ways, key=lambda way: way[:2])

    return best(0, 0)[2]


def _octaves_between(teacher: Section, student: Section, pooled: bool) -> float | None:
    """How far their sizes relative to the image are apart, on the axis that differs most; None if they do not fit."""
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
) -> Pairs:
    """Pairs whose taps are given: for each flow the teacher's (front, back), then the student's.

    Shapes are read by one forward of each network; the ``first`` of such a section is its front.
    Raises: TapError, ShapeError if a tap gives no feature map, NetworkError.
    """
    sides = (_by_hand(net, example, [flow[i] for flow in flows]) for i, net in enumerate((teacher, student)))
    return tuple(map(SectionPair, *sides))


def _by_hand(network: nn.Module, example: Tensor | Sequence[int], flows: Sequence[tuple[str, str]]) -> list[Section]:
    images = example_images(network, example)
    tapped = Tapped(unwrapped(network), [tap for flow in flows for tap in flow])
    with undisturbed(network, images.device), torch.no_grad():
        reading = read_once(tapped, images.clone())  # a network may write into its input
    sections = []
    for front, back in flows:
        entry, exit_ = (_shape(network, tap, reading[tap]) for tap in (front, back))
        taps = (Tap.parse(front), Tap.parse(front), Tap.parse(back))
        sections.append(Section(*taps, entry, entry, exit_, _over(exit_[1:], (images.shape[2], images.shape[3]))))
    return sections


def _shape(network: nn.Module, tap: str, found: Tensor) -> tuple[int, int, int]:
    if found.dim() != 4:
        raise ShapeError(
            f"Tap '{tap}' of {type(network).__name__} gives shape {tuple(found.shape)}, "
            "but a flow lies between feature maps (B, channels, height, width). Name a layer before the flattening."
        )
    return found.shape[1], found.shape[2], found.shape[3]
