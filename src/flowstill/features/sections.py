"""Find a network's sections by one forward."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from flowstill.errors import NetworkError
from flowstill.features.modules import Shape
from flowstill.features.taps import Flow, Tap
from flowstill.features.tracing import find_trunk
from flowstill.features.trunk import Size, Trunk


@dataclass(frozen=True)
class Section:
    """A run of modules whose outputs share one spatial size.

    Attributes:
        entry: the section's input: the stem's activation, or the last output of the section before.
        first: the output of its first block.
        exit: its last output.
        entry_shape: (channels, height, width) at the entry.
        first_shape: the same at ``first``.
        exit_shape: the same at the exit.
        scale: height and width at the exit, relative to the image.
        pooled_scale: the same after the pooling that follows the exit (VGG); None without one.
    """

    entry: Tap
    first: Tap
    exit: Tap
    entry_shape: Shape
    first_shape: Shape
    exit_shape: Shape
    scale: tuple[float, float]
    pooled_scale: tuple[float, float] | None = None

    @property
    def size(self) -> Size:
        """Height and width that the section's maps share."""
        return self.exit_shape[1:]

    @property
    def flow(self) -> Flow:
        """Section input -> section output."""
        return Flow(self.entry, self.exit)

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
            pooled_scale = relative(pooled.size, trunk.image) if pooled else None
            sections.append(Section(*taps, *shapes, relative(last.size, trunk.image), pooled_scale))
        entry, entry_tap = last, exit_tap
    if not sections:
        raise NetworkError(_nothing_found(network, trunk))
    return sections


def _nothing_found(network: nn.Module, trunk: Trunk) -> str:
    sizes = dict.fromkeys(f"{m.size[0]}x{m.size[1]}" for m in trunk.maps if trunk.between(-1, m.index))
    maps = f"maps of {', '.join(sizes)}" if sizes else "no map that a tap can read"
    return (
        f"No sections found in {type(network).__name__}: expected runs of convolutions whose maps share a size. "
        f"Received: {len(trunk.convolutions)} 2-D convolutions and {maps}. Name the taps by hand: 'flows' of the job."
    )


def relative(size: Size, image: Size) -> tuple[float, float]:
    """Height and width relative to the image's."""
    return size[0] / image[0], size[1] / image[1]
