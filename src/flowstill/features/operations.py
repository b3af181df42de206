"""Finds the channel axis of a network's maps from the operations on them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from flowstill.features.modules import tensors_in
from flowstill.features.recorder import Vertex

_LAST = ("linear", "layer_norm", "rms_norm")  # treat the last axis as channels
_SECOND = ("conv2d", "conv_transpose2d", "batch_norm", "group_norm", "instance_norm", "interpolate", "pixel_shuffle")
_TURN = ("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis")
_CUT = ("cat", "concat", "concatenate", "chunk", "split", "narrow", "pad", "roll", "__getitem__")
_FOLD = ("view", "reshape", "flatten", "unflatten")
_MIX = ("matmul", "bmm", "einsum", "softmax", "scaled_dot_product_attention")


class Operations(TorchFunctionMode):
    """Records what the functions of a forward tell about the axes of 4-D tensors.

    A convolution's channels are axis 1, a linear layer's the last one. The axis is followed through everything that
    keeps a tensor's shape or reorders its axes, in both directions.

    shapes: of every tensor with a gradient, by its vertex.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[Vertex, tuple[int, ...]] = {}
        self._channels: set[tuple[Vertex, int]] = set()
        self._links: dict[tuple[Vertex, int], set[tuple[Vertex, int]]] = defaultdict(set)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` and record what it tells."""
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name == "__get__":
            return func(*args, **kwargs)
        before = _vertices(tensors_in((*args, *kwargs.values())))  # before an in-place operation changes its input's
        output = func(*args, **kwargs)
        after = _vertices(tensors_in(output))
        self.shapes.update(after)
        if before and after:
            self._note(name.strip("_") if name != "__getitem__" else name, func, args, kwargs, before, after)
        return output

    def channel_axis(self, map: Tensor) -> int | None:
        """``axis`` of a tensor of the forward, None also if it has no gradient."""
        return next((self.axis(vertex) for vertex in _vertices([map])), None)

    def axis(self, vertex: Vertex) -> int | None:
        """The channel axis of a 4-D tensor, 1 or 3; None if unknown. If the evidence names both, 1."""
        return next((place for place in (1, 3) if self._tells(vertex, place)), None)

    def layout(self, vertex: Vertex) -> str | None:
        """What the tensor is instead of a map (B, D, H, W): tokens, or a map with channels last."""
        dimensions = len(self.shapes[vertex])
        if dimensions == 4 and self.axis(vertex) == 3:
            return "maps (B, H, W, D) with channels last"
        return "tokens (B, N, D)" if dimensions == 3 else None

    def _tells(self, vertex: Vertex, place: int) -> bool:
        """Whether this axis is the channel axis, in the tensor itself or wherever the axis can be followed."""
        stack = [(vertex, place)]
        seen = set(stack)
        while stack:
            one = stack.pop()
            if one in self._channels:
                return True
            stack += self._links[one] - seen
            seen |= self._links[one]
        return False

    def _note(
        self,
        name: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        before: dict[Vertex, tuple[int, ...]],
        after: dict[Vertex, tuple[int, ...]],
    ) -> None:
        given, made = ({v: shape for v, shape in some.items() if len(shape) > 2} for some in (before, after))
        if name in _SECOND or name.endswith("pool2d") or name in _LAST:
            last = name in _LAST
            if name in ("layer_norm", "rms_norm") and len(_normalised(args, kwargs)) != 1:
                return
            acted = dict([*given.items()][:1]) | made
            self._channels |= {(vertex, len(shape) - 1 if last else 1) for vertex, shape in acted.items()}
        elif name not in _MIX and not name.endswith("matmul"):
            for (vertex, shape), (other, result) in itertools.product(given.items(), made.items()):
                for old, new in _kept(name, func, args, kwargs, shape, result):
                    self._links[vertex, old].add((other, new))
                    self._links[other, new].add((vertex, old))


def _kept(
    name: str,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shape: tuple[int, ...],
    result: tuple[int, ...],
) -> Iterable[tuple[int, int]]:
    """The axes that a function keeps whole: input axis -> output axis."""
    if name in _TURN:
        sizes = range(2, 2 + len(shape))
        rest = {key: value for key, value in kwargs.items() if key != "input"}
        turned = func(torch.empty(*sizes, device="meta"), *args[1:], **rest).shape
        return [(sizes.index(size), new) for new, size in enumerate(turned)]
    if shape == result or (name in _CUT and len(shape) == len(result)):
        return [(axis, axis) for axis in range(len(shape))]
    if name not in _FOLD:
        return []
    kept = [(1, 1)] if shape[:2] == result[:2] else []
    return [*kept, (len(shape) - 1, len(result) - 1)] if shape[-1] == result[-1] else kept


def _normalised(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[int]:
    given = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
    return (given,) if isinstance(given, int) else tuple(given)


def _vertices(tensors: Iterable[Tensor]) -> dict[Vertex, tuple[int, ...]]:
    """Vertex -> shape of each of these tensors that has a gradient."""
    found = {}
    for tensor in tensors:
        if tensor.requires_grad and tensor.is_floating_point():
            edge = get_gradient_edge(tensor)
            found[edge.node, edge.output_nr] = tuple(tensor.shape)
    return found
