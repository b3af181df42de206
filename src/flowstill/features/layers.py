"""The convolutions of a section in the order of their execution.

No layer is named by hand: the order is read off the graph that autograd records of one forward, so that it holds for
any convolutional network with sections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from flowstill.errors import NetworkError
from flowstill.features.modules import unwrapped
from flowstill.features.sections import Section
from flowstill.features.taps import Tap, Tapped
from flowstill.features.tracing import example_images, read_once, undisturbed

Weight = tuple[int, int]  # convolutions, and how many weights they have


@dataclass(frozen=True)
class Feature:
    """A map between two layers: where it is read, its shape (channels, height, width), whether it can be negative."""

    tap: Tap
    shape: tuple[int, int, int]
    signed: bool


@dataclass(frozen=True)
class Layer:
    """A convolution, or several neighbouring ones as one: what comes in, and what is handed on after the activation."""

    paths: tuple[str, ...]
    before: Feature
    after: Feature


def find_layers(network: nn.Module, sections: Sequence[Section], example: Tensor | Sequence[int]) -> list[list[Layer]]:
    """The convolutions of each section, in order.

    They are those on the way from the section's entry to its exit that passes the most convolutions (of two such ways,
    the one with more weights): shortcuts, projections beside a block and squeeze-and-excitation gates, whose
    convolutions see one pixel, are left out. What a convolution hands on is read where the next one takes it, after
    normalisation and activation; what the last one hands on is the section's exit.

    Args: example (B, C, H, W), or a shape (C, H, W) or (B, C, H, W); network and example may be on ``meta``.
    Raises: NetworkError if a section has no convolution modules on the way.
    """
    images, network = example_images(network, example), unwrapped(network)
    tapped = Tapped(network, [tap for section in sections for tap in (section.entry, section.exit)])
    with undisturbed(network, images.device), _Watch(network) as watch:
        reading = read_once(tapped, images.detach().clone().requires_grad_().clone())  # it may write into its input
    seen = watch.seen()
    return [_chain(network, section, reading[section.entry], reading[section.exit], seen) for section in sections]


@dataclass(frozen=True)
class _Seen:
    """One convolution module of the forward: its input as it was then, the node that made its output."""

    path: str
    before: Feature
    node: Node
    size: tuple[int, int]
    weights: int


class _Watch:
    """Notes every convolution module that runs once, and what it was given."""

    def __init__(self, network: nn.Module) -> None:
        self.modules = {path: m for path, m in network.named_modules() if isinstance(m, nn.Conv2d)}
        self.given: dict[str, list[tuple[Tensor, int, Feature]]] = {}
        self.made: dict[str, tuple[Node, Tensor]] = {}
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> _Watch:
        for path, module in self.modules.items():
            self.handles.append(module.register_forward_pre_hook(self._before(path), with_kwargs=True))
            self.handles.append(module.register_forward_hook(self._after(path)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _before(self, path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            maps = next(iter((*args, *kwargs.values())))
            if maps.requires_grad and maps.dim() == 4:
                feature = Feature(Tap(path, "input"), _shape(maps), _signed(get_gradient_edge(maps).node))
                self.given.setdefault(path, []).append((maps, maps._version, feature))

        return note

    def _after(self, path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], maps: Tensor) -> None:
            if maps.requires_grad and maps.dim() == 4:
                self.made[path] = (get_gradient_edge(maps).node, maps)

        return note

    def seen(self) -> list[_Seen]:
        """All whose input a tap can read: called once, and nothing has overwritten the input since."""
        found = []
        for path, (node, maps) in self.made.items():
            calls = self.given.get(path, [])
            if len(calls) == 1 and calls[0][0]._version == calls[0][1]:
                weights = self.modules[path].weight.numel()
                found.append(_Seen(path, calls[0][2], node, (maps.shape[2], maps.shape[3]), weights))
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
            f"{type(network).__name__}: no convolution was found on the way through section {section}. "
            "Its convolutions must be modules (torch.nn.Conv2d) that are called once."
        )
    after = [one.before for one in convolutions[1:]]
    after.append(Feature(section.exit, _shape(exit_), _signed(nodes[-1])))
    return [Layer((one.path,), one.before, back) for one, back in zip(convolutions, after, strict=True)]


def _longest(first: Node, last: Node, weight: Callable[[Node], Weight]) -> list[Node]:
    """The nodes after ``first`` up to ``last`` on the heaviest way between them; none if no way leads there."""
    best: dict[Node, tuple[Weight, Node | None]] = {first: ((0, 0), None)}
    seen, stack = {first}, [(last, False)]
    while stack:
        node, complete = stack.pop()
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        if complete:
            leading = [parent for parent in parents if parent in best]
            if leading:
                parent = max(leading, key=lambda p: best[p][0])
                (count, weights), (here, its) = best[parent][0], weight(node)
                best[node] = ((count + here, weights + its), parent)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((parent, False) for parent in parents)
    way: list[Node] = []
    step: Node | None = last if last in best else None
    while step is not None and step is not first:
        way.append(step)
        step = best[step][1]
    return way[::-1]


_MAKES_SIGNS = ("Conv", "Norm")
_KEEPS_SIGNS = ("Add", "Cat", "Clone", "Mul", "Pad", "Permute", "Pool", "Slice", "Split", "View")


def _signed(node: Node) -> bool:
    """Whether a map can be negative: a convolution or normalisation made it, and no activation followed."""
    name = node.name()
    if any(word in name for word in _MAKES_SIGNS):
        return True
    if any(word in name for word in _KEEPS_SIGNS):
        return any(_signed(parent) for parent, _ in node.next_functions if parent is not None)
    return False


def _shape(maps: Tensor) -> tuple[int, int, int]:
    return maps.shape[1], maps.shape[2], maps.shape[3]
