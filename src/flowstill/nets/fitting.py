"""Fits a checkpoint's names to a network's: prefixes, layers under other names, heads of other classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from flowstill.errors import NetworkError, nearest
from flowstill.nets.contents import State, several

_SHOWN = 3  # how many of the wrong parameters an error names
# Modules that wrap others, at any depth: DistributedDataParallel, torch.compile, FSDP, activation checkpointing.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_COUNTER = "num_batches_tracked"  # of BatchNorm; checkpoints older than PyTorch 0.4.1 have none


@dataclass
class Fit:
    """A checkpoint's tensors as a network takes them.

    Attributes:
        state: the tensors by the network's own names.
        heads: heads for other numbers of classes, by their paths: the number in the file, and the network's.
        notices: what was done to make it fit.
    """

    state: State
    heads: dict[str, tuple[int, int]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def kept(self) -> State:
        """The tensors without the heads for other numbers of classes."""
        return {name: tensor for name, tensor in self.state.items() if _owner(name) not in self.heads}


def fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: str, kind: str) -> Fit:
    """Fit what a checkpoint holds to a network.

    Args:
        own: the network's state; tied parameters are the same objects.
        state: the checkpoint's tensors.
        path: the file, for messages.
        kind: the network's class, for messages.

    Raises:
        NetworkError: names, shapes or types do not fit.
    """
    own = {name: tensor for name, tensor in own.items() if isinstance(tensor, Tensor)}
    fitted = Fit(_without_wrappers(own, state))
    _drop_prefix(own, fitted, path)
    fitted.state = {
        n: t for n, t in fitted.state.items() if n in own or "." in n or t.ndim
    }  # not the numbers beside it
    _rename(own, fitted, path)
    where = f"{path} does not fit {kind}"
    _check_names(own, fitted.state, where)
    _check_types(own, fitted.state, where)
    other = [name for name in own if name in fitted.state and fitted.state[name].shape != own[name].shape]
    fitted.heads = _heads(own, fitted.state, other)
    if any(_owner(name) not in fitted.heads for name in other):
        shapes = [f"{n!r} is {tuple(fitted.state[n].shape)} there and {tuple(own[n].shape)} here" for n in other]
        raise NetworkError(f"{where}: {', '.join(shapes[:_SHOWN])}{_more(shapes)}. Check its width and other options.")
    fitted.notices += [
        f"{path}: the head {head!r} has {stored} classes, the network {wanted}; the head starts from fresh weights."
        for head, (stored, wanted) in fitted.heads.items()
    ]
    return fitted


def _without_wrappers(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> State:
    """The tensors under the names that the network has, whatever wraps modules there or here."""
    names = {_unwrapped(name): name for name in own}
    renamed = {name if name in own else names.get(_unwrapped(name), name): t for name, t in state.items()}
    return renamed if len(renamed) == len(state) else dict(state)


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _drop_prefix(own: Mapping[str, Tensor], fitted: Fit, path: str) -> None:
    """Take the names without a prefix that they have in common, such as ``backbone.``, if only so they are the network's.

    Raises:
        NetworkError: the names begin as the networks of several.
    """
    state = fitted.state
    covers = Counter(
        name[: len(name) - len(end)]
        for name in state
        for end in _ends(name)
        if end in own and _alike(state[name], own[end])
    )
    prefix, most = max(covers.items(), key=lambda item: item[1], default=("", 0))
    if not prefix or covers[""] >= most or 2 * most < len(own):
        return
    inside = Fit({name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)})
    outside = {name: t for name, t in state.items() if not name.startswith(prefix)}
    inside.state |= {name: t for name, t in outside.items() if name not in inside.state}
    _rename(own, inside, path)  # a head beside the backbone
    left = [name for name in outside if name in inside.state and name not in own]
    layers = [name for name in left if outside[name].ndim > 1 and name.endswith(".weight")]
    if rivals := [*layers, *(other for other, count in covers.items() if count == most and other != prefix)]:
        depth = prefix.count(".")
        begins = [".".join(name.split(".")[:depth]) for name in (prefix, *rivals)]
        raise NetworkError(several(path, list(dict.fromkeys(begins))))
    kept = {name: t for name, t in inside.state.items() if name not in left}
    about = f"; left out {', '.join(map(repr, left[:_SHOWN]))}{_more(left)}" if left else ""
    notice = f"{path}: its names begin with {prefix!r}, which the network's do not; read without it{about}."
    fitted.state, fitted.notices = kept, [*fitted.notices, notice, *inside.notices]


def _ends(name: str) -> Iterable[str]:
    """The name, and what is left of it without its first part, its first two, ..."""
    while name:
        yield name
        name = name.partition(".")[2]


def _alike(stored: Tensor, own: Tensor) -> bool:
    """Whether a tensor could be the network's, if need be as a head for other classes."""
    return stored.shape[1:] == own.shape[1:]


def _rename(own: Mapping[str, Tensor], fitted: Fit, path: str) -> None:
    """Take a few left-over layers under the names of the layers that the network lacks, where just one can be meant."""
    state = fitted.state
    missing, extra = _layers(own, state), _layers(state, own)
    matched = sum(name in own for name in state)
    if not missing or matched < sum(map(len, missing.values())) or any(_owner(n) in missing for n in own if n in state):
        return
    pairs: dict[str, str] = {}
    for layer, shapes in missing.items():
        here = [name for name, other in missing.items() if other == shapes]
        there = [name for name, other in extra.items() if other == shapes]
        if len(here) == len(there) == 1:
            pairs[there[0]] = layer
    here = [name for name in missing if name not in pairs.values()]
    there = [name for name in extra if name not in pairs]
    if len(here) == len(there) == 1 and _is_head(missing[here[0]], extra[there[0]]):
        pairs[there[0]] = here[0]
    elif here:
        return
    fitted.state = {_renamed(name, pairs): tensor for name, tensor in state.items()}
    shown = [f"{_all_of(there)} -> {_all_of(here)}" for there, here in pairs.items()]
    fitted.notices.append(f"{path}: layers under other names were read by their shapes: {', '.join(shown)}.")


def _layers(names: Mapping[str, Tensor], but: Mapping[str, Tensor]) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of those parameters that ``but`` does not have, by the paths of their layers."""
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in names.items():
        if name not in but and not name.endswith(_COUNTER):
            layers.setdefault(_owner(name), {})[name.rpartition(".")[2]] = tuple(tensor.shape)
    return layers


def _is_head(own: dict[str, tuple[int, ...]], stored: dict[str, tuple[int, ...]]) -> bool:
    """Whether two layers of weights are heads that differ in the number of classes."""
    weight, other = own.get("weight", ()), stored.get("weight", ())
    return own.keys() == stored.keys() <= {"weight", "bias"} and _is_pointwise(weight) and weight[1:] == other[1:]


def _renamed(name: str, pairs: Mapping[str, str]) -> str:
    layer, _, leaf = name.rpartition(".")
    return ".".join(filter(None, (pairs[layer], leaf))) if layer in pairs else name


def _all_of(layer: str) -> str:
    return repr(f"{layer}.*") if layer else "'weight'"


def _heads(own: Mapping[str, Tensor], state: State, other: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Linear and 1x1 convolution layers of which only the number of outputs differs: path -> (in the file, here).

    In the middle of a network that cannot be: the layer that follows would differ too.
    """
    heads = {}
    for name in other:
        stored, wanted = state[name].shape, own[name].shape
        if f".{name}".endswith(".weight") and _is_pointwise(wanted) and stored[1:] == wanted[1:]:
            heads[_owner(name)] = (stored[0], wanted[0])
    return heads if len(set(heads.values())) == 1 else {}


def _is_pointwise(shape: Sequence[int]) -> bool:
    return len(shape) == 2 or (len(shape) == 4 and tuple(shape[2:]) == (1, 1))


def _owner(name: str) -> str:
    """The path of the module that a parameter belongs to."""
    return name.rpartition(".")[0]


def _check_names(own: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    given = {id(own[name]) for name in state if name in own}  # the others of tied parameters may be left out
    missing = [name for name in own if name not in state and not name.endswith(_COUNTER) and id(own[name]) not in given]
    extra = sorted(state.keys() - own.keys())
    problems = []
    if missing:
        problems.append(f"it lacks {', '.join(map(repr, missing[:_SHOWN]))}{_more(missing)}")
    if extra:
        near = {name: nearest(name, missing) for name in extra[:_SHOWN]}
        shown = [f"{name!r} (is it {like[0]!r}?)" if like else repr(name) for name, like in near.items()]
        problems.append(f"the network has no {', '.join(shown)}{_more(extra)}")
    if problems:
        begins = list(dict.fromkeys(name.partition(".")[0] for name in state))
        beginnings = f" The names there begin with {' and '.join(map(repr, begins))}." if len(begins) <= _SHOWN else ""
        hint = f" No name matches: these are the weights of another network.{beginnings}"
        hint = "" if own.keys() & state.keys() else hint
        raise NetworkError(f"{where}: {'; '.join(problems)}.{hint}")


def _check_types(own: Mapping[str, Tensor], state: State, where: str) -> None:
    """Raises: NetworkError for numbers that stand for the weights by a code, as quantised ones do."""
    for name, tensor in state.items():
        coded = not tensor.is_floating_point() or tensor.element_size() == 1
        if own[name].is_floating_point() and coded:
            raise NetworkError(
                f"{where}: {name!r} is {str(tensor.dtype).removeprefix('torch.')} there, so it is quantised, and "
                f"{str(own[name].dtype).removeprefix('torch.')} here. Give the weights from before the quantisation."
            )


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
