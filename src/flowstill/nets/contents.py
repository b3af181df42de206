"""Where in a checkpoint the network is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from flowstill.errors import NetworkError, did_you_mean
from flowstill.nets.pickles import Array

State = dict[str, Tensor]

# Where training scripts keep the network that they train.
_USUAL = {"state_dict", "model", "net", "network", "weights", "params", "module"}
_USUAL |= {"model_state_dict", "model_state", "model_dict", "net_state_dict", "network_state_dict"}
_AVERAGED = ("ema", "averaged", "swa")  # parts of the keys of its averaged copies
_NO_NETWORK = ("optim", "sched", "scaler")  # beginnings of the keys of states with tensors that are no network's
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


def find_state(content: Any, key: str, where: str) -> tuple[State, list[str]]:
    """The state dict in a checkpoint, without the prefixes of wrappers, and what the user should know of the choice.

    The network itself comes before an averaged copy of it (EMA), which is read if the key says so.

    Args:
        content: the checkpoint.
        key: where it is kept, or the prefix of its names, in the user's words; empty if they name none.
        where: the file, for messages.

    Raises:
        NetworkError: there is none, it is quantised or sharded, or there are several and none is named.
    """
    inner, prefix = at(content, key)
    found = dict(networks_in(inner))
    if prefix:
        parts = {place: _beginning(bare(held), prefix) for place, held in found.items()}
        found = {place: part for place, part in parts.items() if part}
        if not found:
            raise _unknown(key, content, where)
    if not found:
        raise _no_state(inner, where)
    above = key.strip(".").removesuffix(prefix).strip(".")
    names = {place: ".".join(filter(None, (above, place, prefix))) for place in found}
    place, beside = _choose(found, names, where)
    held = bare(found[place])
    notices = []
    if beside:
        notices.append(
            f"{where}: read from {names[place] or 'the top'!r}; the file also holds "
            f"{', '.join(repr(names[other]) for other in beside)}. Name it to read that: {where}#{names[beside[0]]}."
        )
    state = {name: tensor for name, value in held.items() if (tensor := _tensor(value)) is not None}
    if lost := [name for name in held if name not in state and "." in name]:
        notices.append(f"{where}: left out {', '.join(map(repr, lost[:3]))} (not tensors).")
    _check_plain(state, lost, where)
    return state, notices


def _choose(found: Mapping[str, Any], names: Mapping[str, str], where: str) -> tuple[str, list[str]]:
    """The place of the network that is meant, and the places of others that the user may have meant.

    Raises:
        NetworkError: it could be any of several.
    """
    usual = [place for place in found if _is_usual(place)]
    copies = [place for place in found if is_copy(place)]
    others = [place for place in found if place not in (*usual, *copies)]
    if len(usual) > 1 and all(_equal(found[usual[0]], found[place]) for place in usual):
        usual = usual[:1]
    choice = usual or [*others, *copies]
    if len(choice) > 1:
        raise NetworkError(several(where, [names[place] for place in choice]))
    return choice[0], [*copies, *others] if usual else []


def several(where: str, names: list[str]) -> str:
    """The error for a file with several networks."""
    ways = " or ".join(f"{where}#{name}" for name in names[:3])
    return f"{where} holds several networks: {', '.join(map(repr, names))}. Say which to read: {ways}."


def networks_in(content: Any, place: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each state dict in a checkpoint, after its place in it, such as ``model.state_dict``."""
    if not isinstance(content, Mapping):
        return
    tensors = {name: tensor for name, value in content.items() if (tensor := _tensor(value)) is not None}
    certain = any(f".{name}".endswith(".weight") and tensor.ndim > 1 for name, tensor in tensors.items())
    whole = len(tensors) == len(content) and any(tensor.ndim or not place for tensor in tensors.values())
    if certain or (whole and _is_usual(place)):
        yield place, content
    for key, value in content.items():
        if isinstance(key, str) and not any(word.startswith(_NO_NETWORK) for word in key.lower().split("_")):
            yield from networks_in(value, f"{place}.{key}" if place else key)


def at(content: Any, key: str) -> tuple[Any, str]:
    """What a checkpoint holds under ``key``, and the end of the key if that is the beginning of names in there.

    >>> at({"model": {"a.b.weight": 1}}, "model.a.b"), at({"teacher": {}}, "teacher")
    (({'a.b.weight': 1}, 'a.b'), ({}, ''))
    """
    key = key.strip(".")
    for name in content if key and isinstance(content, Mapping) else ():
        if isinstance(content[name], Mapping) and f"{key}.".startswith(f"{name}."):
            return at(content[name], key[len(name) :])
    return content, key


def bare(state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries by their names without the prefixes of wrappers. A counter of averaged models has no prefix."""
    entries = {str(name): value for name, value in state.items()}
    for prefix in _WRAPPERS * 2:  # they nest, either way round
        inside = [name for name in entries if name.startswith(prefix)]
        if inside and all(name in inside or "." not in name for name in entries):
            entries = {name.removeprefix(prefix): entries[name] for name in inside}
    return entries


def _beginning(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def _unknown(key: str, content: Any, where: str) -> NetworkError:
    """The error for a key under which a checkpoint holds nothing; it names what is there."""
    found = dict(networks_in(content))
    begins = {name.partition(".")[0] for held in found.values() for name in bare(held) if "." in name}
    return NetworkError(
        f"{where} has no {key!r}. {did_you_mean(key, sorted({*filter(None, found), *begins}))}".rstrip()
    )


def _is_usual(place: str) -> bool:
    return all(part in _USUAL for part in place.split(".") if part)


def is_copy(place: str) -> bool:
    """Whether a key is usual for an averaged copy of the network in training."""
    return any(word in place.lower().replace(".", "_").split("_") for word in _AVERAGED)


def _equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    one, two = ({n: t for n, v in bare(s).items() if (t := _tensor(v)) is not None} for s in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def _tensor(value: Any) -> Tensor | None:
    """The value as a tensor, if it is one or an array of numbers."""
    if isinstance(value, Array) and value.values is not None and value.values.dtype.kind in "biuf":
        return torch.from_numpy(value.values.copy())
    return value if isinstance(value, Tensor) else None


def _check_plain(state: State, lost: list[str], where: str) -> None:
    """Raises: NetworkError for tensors whose numbers are not the weights themselves."""
    for name in lost:
        if "_packed_params" in name:
            raise NetworkError(f"{where}: {name!r} is quantised. Give the weights from before the quantisation.")
    for name, tensor in state.items():
        if tensor.is_quantized:
            raise NetworkError(
                f"{where}: {name!r} is quantised ({tensor.dtype}). Give the weights from before the quantisation."
            )
        if type(tensor).__name__ in ("DTensor", "ShardedTensor"):
            raise NetworkError(
                f"{where}: {name!r} is one part of a tensor sharded over processes. Gather it (full_tensor()) where it "
                "was trained."
            )
        if tensor.is_meta:
            raise NetworkError(f"{where}: {name!r} is a meta tensor, which holds no data.")


def _no_state(content: Any, where: str) -> NetworkError:
    if isinstance(content, Mapping):
        held = f"a dict of {', '.join(map(repr, list(content)[:3])) or 'nothing'}"
    else:
        held = f"a {type(content).__name__}"
    usual = ", ".join(map(repr, sorted(_USUAL)))
    return NetworkError(f"{where}: expected a state dict, at the top or under a key such as {usual}. Received: {held}.")
