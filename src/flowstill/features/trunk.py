"""A network's trunk: the feature maps that every path from image to logits passes through, grouped by size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flowstill.features.kinds import Kind
from flowstill.features.taps import Tap

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Convolution:
    """One 2-D convolution of the forward.

    Attributes:
        index: its place in the order of operations.
        size: of its output.
        on_trunk: whether no branch bypasses it.
        spatial: whether its kernel spans more than one pixel.
        depthwise: whether it treats each channel separately.
        dense: whether it is in effect a fully connected layer, from a whole map to one pixel without a stride.
    """

    index: int
    size: Size
    on_trunk: bool
    spatial: bool
    depthwise: bool
    dense: bool


@dataclass(frozen=True)
class Call:
    """The only call of a module that outputs a trunk map.

    Attributes:
        path: the module's.
        begin: place of the last trunk map known when the module was called, usually its input.
        end: place of its output.
        readable: whether nothing overwrites the output later.
        weights: number of kernels and matrices in the module.
    """

    path: str
    begin: int
    end: int
    readable: bool
    weights: int


@dataclass(frozen=True)
class TrunkMap:
    """A feature map that a tap can read.

    Attributes:
        index: its place in the order of operations.
        shape: (channels, height, width).
        makers: the calls that output it.
        feeds: paths of the modules that take it.
        kind: what made it.
    """

    index: int
    shape: tuple[int, int, int]
    makers: tuple[Call, ...]
    feeds: tuple[str, ...]
    kind: Kind

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.shape[1:]

    def tap(self, after: int = 0) -> Tap:
        """The name that a person would choose: the outermost module that makes this map from what comes after ``after``.

        ``layer1`` rather than ``layer1.2``, but not ``features`` if that spans earlier sections too.
        """
        within = [call for call in self.makers if call.begin >= after]
        if within:
            return Tap(
                min(reversed(within), key=lambda call: call.begin).path
            )  # of two equal ones, the outer ends later
        if self.makers:
            return Tap(max(self.makers, key=lambda call: call.begin).path)
        return Tap(self.feeds[0], "input")


Run = list[TrunkMap]  # maps of one size that follow each other


@dataclass(frozen=True)
class Trunk:
    """What one forward shows, in order.

    Attributes:
        image: height and width of the input.
        activations: place and shape of each map that an activation makes, whether or not a tap can read it.
        products: places of the linear layers and other matrix products.
        layouts: what else every path passes through besides maps (B, D, H, W), in words: tokens, maps with channels last.
    """

    image: Size
    maps: tuple[TrunkMap, ...]
    calls: tuple[Call, ...]
    convolutions: tuple[Convolution, ...]
    activations: Mapping[int, tuple[int, ...]]
    products: tuple[int, ...]
    layouts: tuple[str, ...]

    def between(self, after: int, upto: int) -> list[Convolution]:
        """The convolutions after place ``after``, up to and including ``upto``."""
        return [conv for conv in self.convolutions if after < conv.index <= upto]

    def weighs(self, after: int, upto: int) -> bool:
        """Whether a convolution or a matrix product lies between the two places."""
        return bool(self.between(after, upto)) or any(after < place <= upto for place in self.products)

    def spatial(self, after: int, upto: int) -> bool:
        """Whether one of them has a kernel of more than one pixel."""
        return any(conv.spatial for conv in self.between(after, upto))

    def runs(self) -> list[Run]:
        """The maps from the first convolution to the head, in runs of one size.

        Only sizes that some convolution outputs count; others come from padding, token grids or NHWC maps. Sizes less
        than half an octave apart are one run. The head starts where a map shrinks to a single pixel without a
        convolution, or by one that is in effect a fully connected layer.
        """
        sizes = {conv.size for conv in self.convolutions}
        runs: list[Run] = []
        for m in self.maps:
            if not self.between(-1, m.index) or m.size not in sizes:
                continue
            if runs and octaves(runs[-1][0].size, m.size) < 0.5:
                runs[-1].append(m)
                continue
            made_by = [c for c in self.between(runs[-1][-1].index, m.index) if c.size == m.size] if runs else []
            if runs and m.size == (1, 1) and all(conv.dense for conv in made_by):
                break
            runs.append([m])
        return runs

    def works(self, run: Run, entry: TrunkMap, last: TrunkMap) -> bool:
        """Whether a convolution outputs a map of the run's size between the two."""
        return any(conv.size in {m.size for m in run} for conv in self.between(entry.index, last.index))

    def activation(self, run: Run, convolution: int) -> TrunkMap:
        """The run's map after the convolution at this place and the normalisation and activation that follow it."""
        later = [m for m in run if m.index >= convolution]
        start = later[0].index
        stop = next((conv.index for conv in self.convolutions if conv.index > start), math.inf)
        # A normalisation inside the next block (pre-activation) belongs to that block.
        inside = {m.index for m in later for c in self.calls if start <= c.begin < m.index < c.end}
        return [m for m in later if m.index == start or (m.index < stop and m.index not in inside)][-1]

    def last(self, run: Run, following: Run | None, entry: TrunkMap) -> TrunkMap:
        """The run's output: its last map that is neither inside the step to the next size nor in the head."""
        return self._before_step(run, following) if following else self._before_head(run, entry)

    def first(self, run: Run, entry: TrunkMap, last: TrunkMap) -> TrunkMap:
        """The output of the run's first block at ``last``'s size, or of its first convolution if it has no blocks."""
        maps = {m.index: m for m in run if m.size == last.size and entry.index < m.index <= last.index}
        ends = [c.end for c in self.calls if c.begin >= entry.index and c.end in maps and self._is_block(c)]
        if not ends:
            made_here = [c.index for c in self.between(entry.index, last.index) if c.size == last.size]
            return self.activation(list(maps.values()), min(made_here, default=last.index))
        end = min(ends)
        # If a module continues after its only spatial part (a 1x1 convolution after a concat), all of it is the block.
        outer = [c.end for c in self.calls if entry.index <= c.begin < end < c.end and c.end in maps]
        return maps[max((e for e in outer if not self.spatial(end, e)), default=end)]

    def pooled(self, last: TrunkMap) -> TrunkMap | None:
        """The map after the pooling that follows ``last``; None if no pooling follows, or a global one."""
        smaller = next((m for m in self.maps if m.index > last.index and m.size != last.size), None)
        if smaller is None or self.weighs(last.index, smaller.index) or octaves(last.size, smaller.size) > 1.5:
            return None
        return smaller

    def entering(self, last: TrunkMap) -> TrunkMap:
        """The map that enters the section after ``last``: ``last`` itself, or what pooling makes of it."""
        pooled = self.pooled(last)
        if pooled is None:
            return last
        enter = [m for m in self.maps if m.size == pooled.size and not self.weighs(last.index, m.index)]
        return self.activation(enter, pooled.index)

    def unactivated(self, made: TrunkMap) -> list[TrunkMap]:
        """The maps before the normalisation and the activation that end in ``made``, the nearest first."""
        return [
            m
            for m in reversed(self.maps)
            if m.index < made.index and m.shape == made.shape and m.kind not in ("activation", made.kind)
            if not self.weighs(m.index, made.index)
        ]

    def activated_later(self, last: TrunkMap) -> bool:
        """Whether ``last`` has no activation but its layer has one later, which no tap can read."""
        if last.kind == "activation":
            return False
        # An activation inside the next block (pre-activation) belongs to that block.
        inside = [c for c in self.calls if last.index <= c.begin and self.between(c.begin, c.end)]
        return any(
            place > last.index and shape == last.shape and not self.weighs(last.index, place)
            for place, shape in self.activations.items()
            if not any(c.begin < place < c.end for c in inside)
        )

    def _is_block(self, call: Call) -> bool:
        return call.weights > 1 and self.spatial(call.begin, call.end)

    def _before_step(self, run: Run, following: Run) -> TrunkMap:
        """The last map before a module that steps to the next size begins, without its expansion or normalisation.

        Such a module starts inside this run and ends inside the next; before its step it has no block, and no spatial
        convolution but depthwise ones. A stage that pools or strides at its end does not count.
        """
        last, end = run[-1], run[-1].index
        for call in self.calls:
            if run[0].index <= call.begin < end and following[0].index <= call.end <= following[-1].index:
                given = [m for m in run if m.index <= call.begin][-1]
                blocks = [c for c in self.calls if given.index <= c.begin < c.end <= end and self._is_block(c)]
                mixes = [c for c in self.between(given.index, end) if c.spatial and not c.depthwise]
                if given.index < last.index and not blocks and not mixes:
                    last = given
        return last

    def _before_head(self, run: Run, entry: TrunkMap) -> TrunkMap:
        """The last map before 1x1 convolutions that widen or classify, unless those end a block or a separable one."""
        last = run[-1]
        while True:
            convolutions = self.between(-1, last.index)
            conv = convolutions[-1]
            before = [c for c in convolutions[:-1] if c.on_trunk][-1:]
            in_block = any(
                entry.index <= call.begin < conv.index <= call.end and self.spatial(call.begin, conv.index)
                for call in self.calls
            )
            kept = [m for m in run if m.index < conv.index]
            if conv.spatial or not conv.on_trunk or in_block or not kept or any(c.depthwise for c in before):
                return last
            last = kept[-1]


def octaves(one: Size, other: Size) -> float:
    """The distance of two sizes, in factors of two along the axis that differs most."""
    return max(abs(math.log2(a / b)) for a, b in zip(one, other, strict=True))
