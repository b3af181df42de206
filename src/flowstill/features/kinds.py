"""What made a map: a convolution, a normalisation, an activation. Read off the graph that autograd records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch.autograd.graph import Node

from flowstill.features.graph import walk

Kind = Literal["activation", "normalisation", "convolution", "linear layer", "sum", "concatenation"]

WORDS: dict[Kind, str] = {
    "activation": "an activation",
    "normalisation": "a normalisation",
    "convolution": "a bare convolution",
    "linear layer": "a bare linear layer",
    "sum": "a sum without activation",
    "concatenation": "a concatenation without activation",
}

_MAKERS: tuple[tuple[str, Kind], ...] = (
    ("Conv", "convolution"),
    ("Norm", "normalisation"),
    ("Addmm", "linear layer"),
    ("Addbmm", "linear layer"),
    ("MmBackward", "linear layer"),
    ("BmmBackward", "linear layer"),
    ("LinearBackward", "linear layer"),
)
_KEEPERS = (
    *("Add", "Cat", "Clone", "Copy", "Mean", "Mul", "Pad", "Permute", "Pool", "Reshape", "Roll", "Slice", "Split"),
    *("Squeeze", "Sub", "Transpose", "Unsqueeze", "Upsample", "View"),
)


def kind_of(node: Node) -> Kind:
    """What made the map that ``node`` puts out; pooling, reordering and gates keep the kind of their input.

    A sum or a concatenation of activated maps is activated too. Everything else after an activation is the ``sum`` or
    ``concatenation`` that it is.
    """
    kinds: dict[Node, Kind | None] = {}
    for one, parents in walk(node, _given):
        known = [kind for parent in parents if (kind := kinds[parent]) is not None]
        kinds[one] = _own(one) if not parents else _together(one.name(), known)
    return kinds[node] or "activation"


def is_activation(node: Node) -> bool:
    """Whether the node itself is an activation: neither a weighted sum nor a mere pass-through."""
    return _own(node) == "activation" and not _keeps(node)


def is_product(node: Node) -> bool:
    """Whether the node is a linear layer or another matrix product."""
    return _own(node) == "linear layer"


def _keeps(node: Node) -> bool:
    name = node.name()
    return not any(word in name for word, _ in _MAKERS) and any(word in name for word in _KEEPERS)


def _given(node: Node) -> list[Node]:
    """The inputs of a node that keeps their kind."""
    return [parent for parent, _ in node.next_functions if parent is not None] if _keeps(node) else []


def _own(node: Node) -> Kind | None:
    """The kind of a node's output if its input does not matter; None for parameters and images."""
    if "AccumulateGrad" in node.name():
        return None
    return next((kind for word, kind in _MAKERS if word in node.name()), "activation")


def _together(name: str, kinds: Iterable[Kind]) -> Kind | None:
    """The kind of several maps combined."""
    given = list(kinds)
    signed = [kind for kind in given if kind != "activation"]
    if not given or len(given) == 1 or not signed:
        return given[0] if given else None
    if "Cat" in name:
        return "concatenation"
    return "sum" if "Add" in name or "Sub" in name else signed[0]
