"""Weights from a file into a network, with the head replaced where the classes differ."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from flowstill.errors import NetworkError, nearest
from flowstill.nets.beside import is_plain, read_beside
from flowstill.nets.checkpoints import read_weights

_SHOWN = 3  # how many of the wrong parameters an error names
_log = logging.getLogger("flowstill")


def load_weights(network: nn.Module, path: str | Path) -> list[str]:
    """Read a file's weights into ``network``, and report what was replaced.

    A classifier head (a Linear or 1x1 convolution) for another number of classes keeps its initial weights. On ``meta``,
    names and shapes are checked and nothing is copied.

    Returns:
        Notices, also logged as warnings to ``flowstill``.

    Raises:
        NetworkError: the file cannot be read, or names or shapes do not fit; the network is then untouched.
    """
    return load_state(network, read_weights(path), read_beside(path), str(path))


def load_state(network: nn.Module, state: Mapping[str, Tensor], beside: Mapping[str, Any], path: str) -> list[str]:
    """``load_weights`` with the content of the file.

    Args:
        network: takes them.
        state: the file's tensors.
        beside: its other values.
        path: what messages call the file.
    """
    whole = network.state_dict()
    own = {name: value for name, value in whole.items() if is_plain(value) and not _is_extra(name)}
    where = f"{path} does not fit {type(network).__name__}"
    _check_names(own, {name: value for name, value in state.items() if name not in whole.keys() - own.keys()}, where)
    other = {name: state[name] for name in own if name in state and state[name].shape != own[name].shape}
    heads = _heads(network, other)
    if any(_owner(name) not in heads for name in other):
        shapes = [f"{n!r} is {tuple(t.shape)} there and {tuple(own[n].shape)} here" for n, t in other.items()]
        raise NetworkError(f"{where}: {', '.join(shapes[:_SHOWN])}{_more(shapes)}. Check its width and other options.")
    if not any(tensor.is_meta for tensor in own.values()):
        given = OrderedDict((n, t) for n, t in {**state, **beside}.items() if _owner(n) not in heads)
        if beside and hasattr(whole, "_metadata"):
            given._metadata = whole._metadata  # type: ignore[attr-defined]  # quantised layers ask for their version
        network.load_state_dict(given, strict=False)
    notices = [
        f"{path}: the head {head!r} has {stored} classes, the network {wanted}; the head starts from fresh weights."
        for head, (stored, wanted) in heads.items()
    ]
    for notice in notices:
        _log.warning(notice)
    return notices


def head_classes(network: nn.Module, path: str | Path) -> int | None:
    """The number of classes of the head in the file if it differs from the network's; else None.

    Raises:
        NetworkError: the file cannot be read.
    """
    state = read_weights(path)
    own = network.state_dict()
    heads = _heads(network, {n: t for n, t in state.items() if is_plain(own.get(n)) and own[n].shape != t.shape})
    return next((stored for stored, _ in heads.values()), None)


def _is_extra(name: str) -> bool:
    """Whether a value is of ``get_extra_state``, which may be anything."""
    return name.rpartition(".")[2] == "_extra_state"


def _owner(name: str) -> str:
    """The path of the module that a parameter belongs to."""
    return name.rpartition(".")[0]


def _heads(network: nn.Module, other: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Linear and 1x1 convolution layers of which only the number of outputs differs: path -> (in the file, here).

    In the middle of a network that cannot be: the layer that follows would differ too.
    """
    heads = {}
    for path, module in network.named_modules():
        stored = other.get(f"{path}.weight" if path else "weight")
        pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
        if stored is not None and (pointwise or isinstance(module, nn.Linear)):
            own = module.get_parameter("weight")
            if stored.shape[1:] == own.shape[1:]:
                heads[path] = (stored.shape[0], own.shape[0])
    return heads if len(set(heads.values())) == 1 else {}


def _check_names(own: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    # Checkpoints older than PyTorch 0.4.1 do not count BatchNorm's batches.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    extra = sorted(state.keys() - own.keys())
    problems = []
    if missing:
        problems.append(f"it lacks {', '.join(map(repr, missing[:_SHOWN]))}{_more(missing)}")
    if extra:
        near = {name: nearest(name, missing) for name in extra[:_SHOWN]}
        shown = [f"{name!r} (is it {like[0]!r}?)" if like else repr(name) for name, like in near.items()]
        problems.append(f"the network has no {', '.join(shown)}{_more(extra)}")
    if problems:
        hint = "" if own.keys() & state.keys() else " No name matches: these are the weights of another network."
        raise NetworkError(f"{where}: {'; '.join(problems)}.{hint}")


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
