"""Records the inputs and outputs of modules during a forward, by hooks.

``Tapped`` has hooks of its own: torch.compile must be able to trace them, and they can stop the forward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from flowstill.features.modules import is_scripted, tensors_in

Vertex = tuple[Node, int]  # a tensor of autograd's graph: the operation that made it, and which of its outputs it is


@dataclass(frozen=True)
class Event:
    """A module taking its arguments, or giving its output.

    Attributes:
        path: the module's.
        at: ``input`` or ``output``.
        tensors: in the arguments or the output, in order.
        versions: their version counters at the time.
        map: the first tensor, or the first of shape (B, C, H, W) where there are several; None if it is not a feature map
            with a gradient.
        vertex: of the map, as it was then.
    """

    path: str
    at: Literal["input", "output"]
    tensors: tuple[Tensor, ...]
    versions: tuple[int, ...]
    map: Tensor | None
    vertex: Vertex | None

    @property
    def overwritten(self) -> bool:
        """Whether an in-place operation has changed one of the tensors since."""
        return any(t._version != version for t, version in zip(self.tensors, self.versions, strict=True))


class Recorder:
    """Records each call of some modules inside a ``with`` block.

    Args:
        modules: by their paths.

    events: in the order in which they happened. calls: how often each module was called.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = dict(modules)
        self.events: list[Event] = []
        self.calls: Counter[str] = Counter()
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Recorder:
        for path, module in self.modules.items():
            if is_scripted(module):  # it would not call them
                continue
            self._handles.append(module.register_forward_pre_hook(self._before(path), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after(path)))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.calls[path] += 1
            given = (*args, *kwargs.values())
            self._note(path, "input", given, next(iter(given), None))

        return note

    def _after(self, path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._note(path, "output", output, output)

        return note

    def _note(self, path: str, at: Literal["input", "output"], value: Any, first: Any) -> None:
        tensors = tuple(tensors_in(value))
        found = first if isinstance(first, Tensor) else next((t for t in tensors_in(first) if t.dim() == 4), None)
        if found is not None and not (found.dim() == 4 and found.requires_grad):
            found = None
        vertex = None
        if found is not None:
            edge = get_gradient_edge(found)
            vertex = edge.node, edge.output_nr
        self.events.append(Event(path, at, tensors, tuple(t._version for t in tensors), found, vertex))
