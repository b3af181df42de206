"""Find a network's sections by one forward."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from flowstill.errors import NetworkError
from flowstill.features.kinds import Kind
from flowstill.features.modules import Shape
from flowstill.features.taps import Flow, Tap
from flowstill.features.tracing import find_trunk
from flowstill.features.trunk import Run, Size, Trunk, TrunkMap

ENDS = ("entry", "first", "exit")
Point = tuple[Tap, Kind]  # where a map is read, and what made it


@dataclass(frozen=True)
class Section:
    """A run of modules whose outputs share one spatial size.

    Attributes:
        entry: the section's input: the stem's activation, or the last output of the section before; after the pooling
            that follows it, if a tap can read there.
        first: the output of its first block.
        exit: its last output.
        entry_shape: (channels, height, width) at the entry.
        first_shape: the same at ``first``.
        exit_shape: the same at the exit.
        scale: height and width at the exit, relative to the image.
        pooled_scale: the same after the pooling that follows the exit (VGG); None without one.
        kinds: what made the maps at entry, first and exit, such as ``activation``; empty if the taps were named by hand.
        unactivated: for each of the three, where the same map can be read before its activation, the nearest first.
        activated_later: whether an activation follows the exit that no tap can read, since it is a function or works
            in place; the exit then lies before it.
    """

    entry: Tap
    first: Tap
    exit: Tap
    entry_shape: Shape
    first_shape: Shape
    exit_shape: Shape
    scale: tuple[float, float]
    pooled_scale: tuple[float, float] | None = None
    kinds: tuple[Kind, ...] = ()
    unactivated: tuple[tuple[Point, ...], ...] = ()
    activated_later: bool = False

    @property
    def size(self) -> Size:
        """Height and width that the section's maps share."""
        return self.exit_shape[1:]

    @property
    def flow(self) -> Flow:
        """Section input -> section output."""
        return Flow(self.entry, self.exit)

    def readings(self, end: int) -> list[Point]:
        """All taps that read the map at an end, each with what makes the map there, the section's own tap first."""
        return [(getattr(self, ENDS[end]), self.kinds[end]), *self.unactivated[end]]

    def read_at(self, end: int, tap: Tap, kind: Kind) -> Section:
        """The same section with another tap at an end."""
        if tap == getattr(self, ENDS[end]):
            return self
        kinds = tuple(kind if i == end else own for i, own in enumerate(self.kinds))
        entry, first, exit_ = (tap if i == end else getattr(self, name) for i, name in enumerate(ENDS))
        return replace(self, entry=entry, first=first, exit=exit_, kinds=kinds)

    def __str__(self) -> str:
        return f"{self.entry} -> {self.exit} ({self.size[0]}x{self.size[1]})"


def find_sections(network: nn.Module, example: Tensor | Sequence[int]) -> list[Section]:
    """Find the sections of a convolutional network, in order, by one forward in eval mode.

    The stem, pooling and the classifier's head belong to no section. Sizes less than half an octave apart count as one
    (unpadded convolutions). The network stays unchanged.

    Args:
        network: any convolutional classifier; it may be on ``meta``.
        example: images (B, C, H, W), or a shape (C, H, W) or (B, C, H, W); it may be on ``meta``.

    Returns:
        At least one section, from image to logits.

    Raises:
        NetworkError: there are no sections, or the network cannot take the example.

    Example:
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
        left = trunk.activation(runs[0], trunk.convolutions[0].index)
        tap = left.tap()
    for run, following in itertools.zip_longest(runs, runs[1:]):
        last = trunk.last(run, following, left)
        if last.index <= left.index:
            continue  # only the stem
        exit_tap = last.tap(left.index)
        if trunk.works(run, left, last):
            sections.append(_section(trunk, run, (left, tap), (last, exit_tap), stem=not sections))
        left, tap = last, exit_tap
    if not sections:
        raise NetworkError(_nothing_found(network, trunk))
    return sections


def _section(trunk: Trunk, run: Run, before: tuple[TrunkMap, Tap], after: tuple[TrunkMap, Tap], stem: bool) -> Section:
    """The section from one map, that the section before or the stem puts out, to another."""
    (left, left_tap), (last, exit_tap) = before, after
    first, entry, pooled = trunk.first(run, left, last), trunk.entering(left), trunk.pooled(last)
    maps = (entry, first, last)
    return Section(
        left_tap if entry is left else entry.tap(0 if stem else left.index),
        first.tap(left.index),
        exit_tap,
        entry.shape,
        first.shape,
        last.shape,
        relative(last.size, trunk.image),
        relative(pooled.size, trunk.image) if pooled else None,
        tuple(m.kind for m in maps),
        tuple(tuple((o.tap(), o.kind) for o in trunk.unactivated(m)) for m in maps),
        trunk.activated_later(last),
    )


def _nothing_found(network: nn.Module, trunk: Trunk) -> str:
    sizes = dict.fromkeys(f"{m.size[0]}x{m.size[1]}" for m in trunk.maps if trunk.between(-1, m.index))
    maps = f"maps of {', '.join(sizes)}" if sizes else "no map that a tap can read"
    others = f", and {' and '.join(trunk.layouts)}, which cannot be read as sections" if trunk.layouts else ""
    return (
        f"No sections found in {type(network).__name__}: expected runs of convolutions whose maps share a size. "
        f"Received: {len(trunk.convolutions)} 2-D convolutions and {maps}{others}. Name the taps by hand ('flows' of the "
        "job) where it has maps (B, D, H, W), or choose knowledge that reads no sections, such as 'soft_logits'."
    )


def relative(size: Size, image: Size) -> tuple[float, float]:
    """Height and width relative to the image's."""
    return size[0] / image[0], size[1] / image[1]
