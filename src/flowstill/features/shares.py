"""Where a network's parameters are: in its sections, in its classifier, and outside both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from flowstill.features.graph import walk
from flowstill.features.modules import unwrapped
from flowstill.features.operations import Operations
from flowstill.features.recorder import Vertex
from flowstill.features.sections import Section
from flowstill.features.taps import Tapped
from flowstill.features.tracing import cuts, example_images, graph_between, read_once, undisturbed


@dataclass(frozen=True)
class Shares:
    """Numbers of parameters.

    Attributes:
        sections: between each section's entry and its exit.
        before: what the first section's entry depends on.
        between: what else the last section's exit depends on.
        beyond: after the last section's exit, without the classifier.
        head: the classifier: everything after the last map or token, where each image is a single vector.
        unused: what the logits do not depend on.
    """

    sections: tuple[int, ...]
    before: int
    between: int
    beyond: int
    head: int
    unused: int

    @property
    def body(self) -> int:
        """All parameters but the classifier's."""
        return sum(self.sections) + self.outside

    @property
    def outside(self) -> int:
        """The body's parameters that lie in no section."""
        return self.before + self.between + self.beyond + self.unused

    def parts(self) -> dict[str, int]:
        """The numbers of parameters in no section, in words."""
        return {
            "before the first section's entry": self.before,
            "between sections": self.between,
            "beyond the last section's exit": self.beyond,
            "where the logits do not depend on them": self.unused,
        }

    def mostly_outside(self) -> str:
        """Where most of the body's parameters lie if not in its sections; empty if at least half are in them.

        >>> Shares((100, 200), 0, 0, 700, 500, 0).mostly_outside()
        "70% of its parameters, classifier aside, are in no section: 70% beyond the last section's exit"
        """
        if 2 * self.outside <= self.body:
            return ""
        parts = (f"{count / self.body:.0%} {place}" for place, count in self.parts().items() if count)
        return (
            f"{self.outside / self.body:.0%} of its parameters, classifier aside, are in no section: {', '.join(parts)}"
        )


def find_shares(network: nn.Module, sections: Sequence[Section], example: Tensor | Sequence[int]) -> Shares:
    """Count the parameters of each section of a network and of the rest, by one forward in eval mode.

    Args:
        network: it may be on ``meta``.
        sections: at least one, in order.
        example: images (B, C, H, W), or a shape (C, H, W) or (B, C, H, W).

    Raises:
        NetworkError: the network cannot take the example.
    """
    images, network = example_images(network, example), unwrapped(network)
    parameters = [p for p in network.parameters() if p.is_floating_point() and not p.is_inference()]
    tapped, operations = Tapped(network, [tap for s in sections for tap in (s.entry, s.exit)]), Operations()
    trained = [p.requires_grad for p in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)  # else it is not in the graph
        with undisturbed(network, images.device), operations:
            source = images.detach().clone().requires_grad_().clone()  # twice: a network may write into its input
            start = get_gradient_edge(source)
            reading = read_once(tapped, source)
        ends = [(_under(reading[s.entry]), _under(reading[s.exit])) for s in sections]
        logits = _under(reading.logits)
        graph = {}
        if reading.logits is not None and reading.logits.requires_grad:
            last = get_gradient_edge(reading.logits)
            graph = graph_between((start.node, start.output_nr), (last.node, last.output_nr))
        below_head = _last_map(graph, operations)
    finally:
        for parameter, flag in zip(parameters, trained, strict=True):
            parameter.requires_grad_(flag)
    inside = [exit_ - entry for entry, exit_ in ends]
    before, last_exit = ends[0][0], ends[-1][1]
    held: set[nn.Parameter] = set().union(*inside)
    return Shares(
        tuple(map(_count, inside)),
        _count(before),
        _count(last_exit - before - held),
        _count(below_head - last_exit),
        _count(logits - below_head - last_exit),
        sum(p.numel() for p in network.parameters()) - _count(logits),
    )


def _under(tensor: Tensor | None) -> set[nn.Parameter]:
    """The parameters that a tensor depends on."""
    return set() if tensor is None or not tensor.requires_grad else _leaves(get_gradient_edge(tensor).node)


def _leaves(last: Node) -> set[nn.Parameter]:
    def parents_of(node: Node) -> list[Node]:
        return [parent for parent, _ in node.next_functions if parent is not None]

    leaves = (getattr(node, "variable", None) for node, parents in walk(last, parents_of) if not parents)
    return {leaf for leaf in leaves if isinstance(leaf, nn.Parameter)}


def _last_map(graph: dict[Vertex, list[Vertex]], operations: Operations) -> set[nn.Parameter]:
    """The parameters under the last tensor on every path that is more than one vector for each image."""
    maps = [
        vertex
        for vertex in cuts(graph)
        if (shape := operations.shapes.get(vertex)) and math.prod(shape[1:]) > max(shape[1:], default=1)
    ]
    return _leaves(maps[-1][0]) if maps else set()


def _count(parameters: set[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
