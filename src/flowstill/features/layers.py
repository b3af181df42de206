"""The convolutions of a section in execution order.

No layer is named by hand: the order comes from the graph that autograd records of one forward, so it works for any
convolutional network with sections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from flowstill.errors import NetworkError
from flowstill.features.graph import walk
from flowstill.features.kinds import kind_of
from flowstill.features.modules import Shape, shape_of, unwrapped
from flowstill.features.recorder import Recorder
from flowstill.features.sections import Section
from flowstill.features.taps import Tap, Tapped
from flowstill.features.tracing import example_images, read_once, undisturbed

Weight = tuple[int, int]  # convolutions, and how many weights they have


@dataclass(frozen=True)
class Feature:
    """A map between two layers.

    Attributes:
        tap: where it is read.
        shape: (channels, height, width).
        signed: whether it can be negative: no activation made it.
    """

    tap: Tap
    shape: Shape
    signed: bool


@dataclass(frozen=True)
class Layer:
    """A convolution, or several neighbouring ones as one: its input, and what it passes on after the activation."""

    paths: tuple[str, ...]
    before: Feature
    after: Feature


def find_layers(network: nn.Module, sections: Sequence[Section], example: Tensor | Sequence[int]) -> list[list[Layer]]:
    """The convolutions of each section, in order.

    They lie on the path from the section's entry to its exit that passes the most convolutions; of two such paths, on
    the one with more weights. Shortcuts, projections beside a block and squeeze-and-excitation gates (their convolutions
    see one pixel) are left out. A convolution's output is read at the next one's input, after normalisation and
    activation; the last one's output is the section's exit.

    Args:
        example: images (B, C, H, W), or a shape (C, H, W) or (B, C, H, W). Network and example may be on ``meta``.

    Raises:
        NetworkError: a section has no convolution modules on the path.
    """
    images, network = example_images(network, example), unwrapped(network)
    tapped = Tapped(network, [tap for section in sections for tap in (section.entry, section.exit)])
    recorder = Recorder({path: m for path, m in network.named_modules() if isinstance(m, nn.Conv2d)})
    with undisturbed(network, images.device), recorder:
        reading = read_once(
            tapped, images.detach().clone().requires_grad_().clone()
        )  # the network may write to its input
    seen = _seen(recorder)
    return [_chain(network, section, reading[section.entry], reading[section.exit], seen) for section in sections]


@dataclass(frozen=True)
class _Seen:
    """One convolution module of the forward: its input, and the node that made its output."""

    path: str
    before: Feature
    node: Node
    size: tuple[int, int]
    weights: int


def _seen(recorder: Recorder) -> list[_Seen]:
    """The convolutions whose input a tap can read: called once, and not overwritten since."""
    inputs = {event.path: event for event in recorder.events if event.at == "input" and event.map is not None}
    found = []
    for event in recorder.events:
        given = inputs.get(event.path)
        if event.at == "input" or event.map is None or given is None or recorder.calls[event.path] > 1:
            continue
        if given.overwritten or given.map is None or given.vertex is None or event.vertex is None:
            continue
        before = Feature(Tap(event.path, "input"), shape_of(given.map), kind_of(given.vertex[0]) != "activation")
        module = recorder.modules[event.path]
        assert isinstance(module, nn.Conv2d)
        found.append(_Seen(event.path, before, event.vertex[0], shape_of(event.map)[1:], module.weight.numel()))
    return found


def _chain(network: nn.Module, section: Section, entry: Tensor, exit_: Tensor, seen: Sequence[_Seen]) -> list[Layer]:
    """The layers of one section."""
    at = {one.node: one for one in seen if one.size != (1, 1) or section.size == (1, 1)}
    nodes: list[Node] = []
    if entry.requires_grad and exit_.requires_grad:
        first, last = get_gradient_edge(entry).node, get_gradient_edge(exit_).node
        nodes = _longest(first, last, lambda node: (1, at[node].weights) if node in at else (0, 0))
    convolutions = [at[node] for node in nodes if node in at]
    if not convolutions:
        raise NetworkError(
            f"{type(network).__name__}: found no convolution on the path through section {section}. "
            "Its convolutions must be modules (torch.nn.Conv2d) that are called once."
        )
    after = [one.before for one in convolutions[1:]]
    after.append(Feature(section.exit, shape_of(exit_), kind_of(nodes[-1]) != "activation"))
    return [Layer((one.path,), one.before, back) for one, back in zip(convolutions, after, strict=True)]


def _longest(first: Node, last: Node, weight: Callable[[Node], Weight]) -> list[Node]:
    """The nodes after ``first`` up to ``last`` on the heaviest path between them; none if no path leads there."""

    def parents_of(node: Node) -> list[Node]:
        return [] if node is first else [parent for parent, _ in node.next_functions if parent is not None]

    best: dict[Node, tuple[Weight, Node | None]] = {first: ((0, 0), None)}
    for node, parents in walk(last, parents_of):
        leading = [parent for parent in parents if parent in best]
        if leading:
            parent = max(leading, key=lambda p: best[p][0])
            (count, weights), (more, heavier) = best[parent][0], weight(node)
            best[node] = ((count + more, weights + heavier), parent)
    way: list[Node] = []
    step: Node | None = last if last in best else None
    while step is not None and step is not first:
        way.append(step)
        step = best[step][1]
    return way[::-1]
