"""A network as a tree of named modules: their names, the wrappers around it, the tensors that they return."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import dropwhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from flowstill.errors import TapError

Shape = tuple[int, int, int]  # of a map or an image: channels, height, width
_REGISTERED = {"_parameters", "_buffers", "_modules"}  # where PyTorch itself looks


def shape_of(maps: Tensor) -> Shape:
    """Channels, height and width of (B, C, H, W) maps."""
    return maps.shape[1], maps.shape[2], maps.shape[3]


def module_names(network: nn.Module) -> list[str]:
    """The paths of all modules inside the network, in its order, without the prefixes of wrappers.

    >>> module_names(nn.DataParallel(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.ReLU()))))
    ['0', '1', '1.0']
    """
    return [name for name, _ in unwrapped(network).named_modules() if name]


def module_at(network: nn.Module, path: str) -> nn.Module:
    """The module at ``path``; the path ``""`` is the network itself.

    Raises:
        TapError: there is none; the text gives the three nearest names.
    """
    network = unwrapped(network)
    try:
        return nn.Module.get_submodule(network, path)  # TorchScript has no method of its own
    except AttributeError:
        near = difflib.get_close_matches(path, module_names(network), n=3, cutoff=0.0)
        nearest = f"Nearest names: {', '.join(map(repr, near))}." if near else "It has no modules inside."
        raise TapError(f"{type(network).__name__} has no module {path!r} to tap. {nearest}") from None


def unwrapped(network: nn.Module) -> nn.Module:
    """The network without DDP, DataParallel and torch.compile around it, in whatever order they are nested."""
    # timm.utils.unwrap_model takes any attribute called `module` for a wrapper, and timm is slow to import.
    return list(_wrappers(network))[-1]


def parallel_wrappers(network: nn.Module) -> tuple[DistributedDataParallel, ...]:
    """The DDP wrappers around the network."""
    return tuple(w for w in _wrappers(network) if isinstance(w, DistributedDataParallel))


def is_compiled(network: nn.Module) -> bool:
    """Whether torch.compile wraps the network or a part of it, or ``compile()`` was called on one."""
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in network.modules())


def is_scripted(module: nn.Module) -> bool:
    """Whether TorchScript runs the module, which then calls no hooks of the modules inside it."""
    return isinstance(module, torch.jit.ScriptModule)


def inplace_beside(network: nn.Module, path: str, itself: bool) -> str | None:
    """The first module working in place that follows ``path`` in the same parent.

    Args:
        itself: start with ``path`` itself instead of the module after it.


    >>> inplace_beside(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(inplace=True)), "0", itself=False)
    '1'
    """
    parent, _, name = path.rpartition(".")
    after = dropwhile(lambda child: child[0] != name, module_at(network, parent).named_children())
    if not itself:
        next(after, None)
    beside = (inner for child, module in after for inner in module.named_modules(prefix=child))
    found = next((inner for inner, module in beside if getattr(module, "inplace", False)), None)
    return f"{parent}.{found}".strip(".") if found else None


def unregistered(network: nn.Module) -> Iterator[str]:
    """Where a network keeps layers or weights in plain lists, tuples and dicts, which PyTorch does not look into.

    >>> network = nn.Sequential(nn.ReLU())
    >>> network.blocks = [nn.Conv2d(3, 8, 3)]
    >>> list(unregistered(network))
    ['blocks']
    """
    known = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
    for path, module in network.named_modules():
        for key, value in vars(module).items():
            if key not in _REGISTERED and any(id(tensor) not in known for tensor in _weights_in(value)):
                yield f"{path}.{key}".lstrip(".")


def _weights_in(value: object) -> Iterator[Tensor]:
    """What could be trained in an attribute of a module."""
    if isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, Tensor):
        if value.is_leaf and value.requires_grad:
            yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _weights_in(part)


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors in a module's arguments or output, in order; looks into mappings, sequences and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
    elif is_dataclass(value):
        yield from tensors_in(tuple(getattr(value, part.name) for part in fields(value)))


def logits_in(output: Any) -> Tensor:
    """The output itself, its field or key ``logits``, its first tensor of shape (B, classes), or its first tensor.

    Raises:
        TapError: it holds no tensor.
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    tensors = list(tensors_in(output))
    found = next((tensor for tensor in tensors if tensor.dim() == 2), next(iter(tensors), None))
    if found is None:
        raise TapError(
            f"Expected a tensor of logits from the network's forward. Received: {type(output).__name__} without a tensor."
        )
    return found


def _wrappers(network: nn.Module) -> Iterator[nn.Module]:
    """The module itself, then what it wraps, down to the network."""
    inner: object = network
    while isinstance(inner, nn.Module):
        yield inner
        parallel = isinstance(inner, (DataParallel, DistributedDataParallel))
        inner = inner.module if parallel else getattr(inner, "_orig_mod", None)
