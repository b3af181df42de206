"""Copies of a user's networks, which may hold more than parameters."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flowstill.errors import NetworkError
from flowstill.features.modules import unwrapped
from flowstill.features.outputs import LogitsOf
from flowstill.features.tracing import cannot_take, example_images, undisturbed


def copied(network: nn.Module) -> nn.Module:
    """A copy of the network without wrappers. It shares no weights with the network, which is not changed.

    Maps that it keeps (``self.feat = ...``) are copied without their graph. Attributes that cannot be copied, such as a
    lock, an open file or a generator, are shared.

    Raises:
        NetworkError: it cannot be copied.
    """
    network = unwrapped(network)
    copy_ = _deep_copy(network)
    own = {id(parameter) for parameter in network.parameters()}
    if not isinstance(copy_, nn.Module) or any(id(parameter) in own for parameter in copy_.parameters()):
        raise NetworkError(
            f"{type(network).__name__} cannot be copied: its __deepcopy__ returns something that shares its weights. "
            "Return an independent network."
        )
    for module in copy_.modules():
        for mode in ("train", "eval"):
            module.__dict__.pop(mode, None)  # torch.export puts functions there that only raise
        if not hasattr(module, "training"):  # torch.jit.freeze removes it
            module.__dict__["training"] = False
    for parameter, twin in zip(network.parameters(), copy_.parameters(), strict=True):
        twin.requires_grad_(parameter.requires_grad)  # TorchScript's copies have none
    _keep_output(network, copy_)
    return copy_


def _deep_copy(network: nn.Module) -> Any:
    """``copy.deepcopy``; where that fails, once more with all that cannot be copied shared.

    Raises:
        NetworkError: it fails again.
    """
    with _Detached(), torch.no_grad():
        try:
            return copy.deepcopy(network)
        except Exception as error:
            shared = list(_uncopyable(network, "", set()))
            try:
                if not shared:
                    raise
                return copy.deepcopy(network, {id(value): value for _, value in shared})
            except Exception:
                held = f" It holds {shared[0][0]!r}, a {type(shared[0][1]).__name__}." if shared else ""
                raise NetworkError(
                    f"{type(network).__name__} cannot be copied, and only a copy of a network is trained or read. "
                    f"copy.deepcopy says: {type(error).__name__}: {str(error).splitlines()[0]}.{held} Remove what cannot "
                    "be copied from the network, or give it a __deepcopy__."
                ) from error


def is_lazy(network: nn.Module) -> bool:
    """Whether parameters or buffers have no size yet."""
    return any(map(nn.parameter.is_lazy, (*network.parameters(), *network.buffers())))


def fill_lazy(network: nn.Module, shape: Sequence[int]) -> None:
    """Give a network's lazy layers their sizes and first weights, by one forward on a black image (C, H, W).

    Raises:
        NetworkError: it cannot take the image, or does not run all its lazy layers.
    """
    network, images = unwrapped(network), example_images(network, (2, *shape))
    try:
        with undisturbed(network, images.device), torch.no_grad():
            network(images)
    except Exception as error:
        raise cannot_take(network, images, error) from error
    names = [name for name, tensor in network.state_dict(keep_vars=True).items() if nn.parameter.is_lazy(tensor)]
    if names:
        raise NetworkError(
            f"{type(network).__name__}: {names[0]!r} has no size yet, since the forward did not reach it. Make the "
            "forward run this layer, or remove it."
        )


class _Detached(TorchFunctionMode):
    """Copies tensors that have a graph, which torch refuses to copy, without the graph."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, unless it copies such a tensor."""
        if func is Tensor.__deepcopy__ and (not args[0].is_leaf or args[0].is_inference()):
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _uncopyable(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The innermost values that cannot be copied, each with the path to it."""
    if id(value) in seen or isinstance(value, Tensor):
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        parts: list[tuple[str, Any]] = [(f"{path}[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = [(f"{path}[{index}]", part) for index, part in enumerate(value)]
    elif isinstance(value, nn.Module):
        kept = {key: part for key, part in vars(value).items() if key not in ("_modules", "_parameters", "_buffers")}
        parts = [(f"{path}.{key}".lstrip("."), part) for key, part in [*kept.items(), *value._modules.items()]]
    else:
        parts = [(f"{path}.{key}", part) for key, part in getattr(value, "__dict__", {}).items()]
    if isinstance(value, (types.ModuleType, type)):
        parts = []
    found = False
    for where, part in parts:
        for inner in _uncopyable(part, where, seen):
            found = True
            yield inner
    if not found and not isinstance(value, (nn.Module, Mapping, list, tuple, set, frozenset)):
        try:
            copy.deepcopy(value)
        except Exception:
            yield path, value


def _keep_output(network: nn.Module, copy_: nn.Module) -> None:
    """TorchScript's copies lose their hooks."""
    hooks = [hook for hook in network._forward_hooks.values() if isinstance(hook, LogitsOf)]
    if hooks and not any(isinstance(hook, LogitsOf) for hook in copy_._forward_hooks.values()):
        hooks[0].install(copy_)
