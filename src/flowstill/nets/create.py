"""Builds networks by name."""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from flowstill.errors import NetworkError, did_you_mean
from flowstill.nets import factories, libraries, resnet
from flowstill.nets.checkpoints import weights_file
from flowstill.nets.published import note_preprocessing, preprocessing_in
from flowstill.nets.registry import NETWORKS, Network, no_option, whole_network
from flowstill.nets.spec import Net, is_object
from flowstill.nets.weights import head_classes, load_weights
from flowstill.schema.code import run_code
from flowstill.schema.text import path_as_text

NAME_FORMS = {
    "resnetD, resnetDxW": "a CIFAR ResNet of any depth D = 6n+2, with W times the channels",
    "timm:NAME": "any network of timm",
    "torchvision:NAME": "any classifier of torchvision",
    "FILE.py:FACTORY": "what your own function returns; in a recipe's file it needs --trust-code",
}


def known_nets() -> dict[str, str]:
    """All registered networks by name, each with one line about it; ``NAME_FORMS`` has the other forms of names."""
    return {name: network.about for name, network in NETWORKS.items()}


def create(
    name: str | os.PathLike[str],
    num_classes: int | None = None,
    in_channels: int = 3,
    *,
    weights: str | Path | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network: ``resnet8``, ``vgg-teacher``, ``timm:resnet18``, ``torchvision:vgg11``, ``file.py:factory``.

    Under ``torch.device("meta")`` the network holds no data; a user's own function still runs on the CPU, as it may load
    weights. There, and if a weights file is given, pretrained weights of timm and torchvision are not fetched.

    Args:
        name: see ``flowstill list nets``.
        num_classes: None for the number in the weights file, or else the network's default: 10 or 100 for the CIFAR
            networks here, 1000 for most others.
        in_channels: channels of the images.
        weights: a file to start from, or ``FILE#KEY``; see ``load_weights``. If it says how images become the network's
            input, the network gets the attribute ``preprocessing``. Otherwise the weights are drawn from
            PyTorch's generator.
        options: keyword arguments of the constructor, such as ``width=2``. Networks of timm and torchvision also take
            ``pretrained=True``, and ``init="msra"`` for the fresh weights of He et al. (2015).

    Returns:
        The network, in training mode.

    Raises:
        NetworkError: unknown name or option, with the nearest one, or the file does not fit.

    >>> create("resnet8", num_classes=10).fc
    Linear(in_features=64, out_features=10, bias=True)
    """
    name = path_as_text(name)
    if not isinstance(name, str):
        raise NetworkError(f"Expected the name of a network (see `flowstill list nets`). Received: {name!r}.")
    for what, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value is not None and (type(value) is not int or value < 1):
            raise NetworkError(f"Expected a whole number from 1 for {what}. Received: {value!r}.")
    fetch = weights is None and torch.get_default_device().type != "meta"
    make, runs_code = _maker(name, in_channels, options, fetch), _runs_code(name)
    network = _on_default_device(lambda: make(num_classes), runs_code)
    if weights is None:
        return network
    classes = head_classes(network, weights) if num_classes is None else None
    if classes is not None:
        network = _on_default_device(lambda: make(classes), runs_code)
    load_weights(network, weights)
    note_preprocessing(network, preprocessing_in(weights_file(weights)[0]))
    return network


def build(
    spec: Net, *, num_classes: int | None = None, in_channels: int = 3, weights: str | Path | None = None
) -> nn.Module:
    """The network that a recipe's ``Net`` names.

    Raises:
        NetworkError: as ``create``, or the options hold what the data or the job decides.
    """
    for option, decides in (("num_classes", "data set"), ("in_channels", "data set"), ("weights", "job")):
        if option in spec.options:
            raise NetworkError(f"{spec.name}: {option!r} is not an option of a network; the {decides} decides it.")
    return create(spec.name, num_classes, in_channels, weights=weights, **spec.options)


def _maker(name: str, in_channels: int, options: dict[str, Any], fetch: bool) -> Callable[[int | None], nn.Module]:
    """What builds the network, given the number of classes.

    Raises:
        NetworkError: an unknown name.
    """
    if factories.needs_trust(name):
        return lambda classes: factories.make(name, classes, in_channels, options)
    prefix, colon, rest = name.partition(":")
    if is_object(name):
        raise NetworkError(
            f"Network {name!r} was given as a Python object and has no name to build it by. Build the {rest} "
            "yourself and read the run's weights into it: flowstill.nets.load_weights."
        )
    if colon:
        if prefix in libraries.PREFIXES:
            return lambda classes: libraries.make(prefix, rest, classes, in_channels, options, fetch)
        raise NetworkError(f"Network {name!r}: unknown library {prefix!r}. {did_you_mean(prefix, libraries.PREFIXES)}")
    network = _registered(name)
    make = network.make
    if isinstance(make, str):
        return _maker(make, in_channels, options, fetch)
    _check_options(name, make, network.said, options)
    arguments = {"in_channels": in_channels, **network.said, **options}
    return lambda classes: _build(name, make, arguments | ({} if classes is None else {"num_classes": classes}))


def _runs_code(name: str) -> bool:
    """Whether the code that builds the network is the user's."""
    made = NETWORKS[name].make if name in NETWORKS else ""
    return factories.needs_trust(name) or not (isinstance(made, str) or made.__module__.startswith("flowstill."))


def _registered(name: str) -> Network:
    """The network of that name.

    Raises:
        NetworkError: there is none; the text names the nearest.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    try:
        network = resnet.named_resnet(name)
    except NetworkError as error:
        raise NetworkError(f"{error} {_elsewhere(name)}".rstrip()) from None
    if network is not None:
        return network
    near = _elsewhere(name) or did_you_mean(name, NETWORKS, count=3)
    if name.endswith(".py"):
        near = f"To use a function in that file, write '{name}:FUNCTION'."
    raise NetworkError(f"Unknown network {name!r}. {near}".rstrip())


def _check_options(name: str, make: Callable[..., nn.Module], said: dict[str, Any], options: dict[str, Any]) -> None:
    """Raises: NetworkError for an option that is no keyword-only parameter, or that the name itself gives."""
    known = [key for key, p in inspect.signature(make).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option in said:
            raise NetworkError(f"{name} gives the {option} in its name. Drop the option {option!r} or the name's end.")
        if option not in known:
            raise no_option(name, option, known)


def _build(name: str, make: Callable[..., nn.Module], arguments: dict[str, Any]) -> nn.Module:
    """Call a registered class or function.

    Raises:
        NetworkError: its code fails; the text gives file and line.
    """
    code = Path(inspect.getfile(make))
    return whole_network(name, run_code(lambda: make(**arguments), code, f"Network {name!r} failed", NetworkError))


def _elsewhere(name: str) -> str:
    """A sentence that offers the libraries' networks of exactly this name."""
    found = [f"'{prefix}:{name}'" for prefix in libraries.PREFIXES if name in libraries.names(prefix)]
    return f"Did you mean {' or '.join(found)}?" if found else ""


def _on_default_device(make: Callable[[], nn.Module], runs_code: bool) -> nn.Module:
    """Build the network. Under ``meta``, a user's code and whatever needs values are built on the CPU first.

    A user's code may load weights, look at them, write files or keep what it built: without values that would go wrong,
    at once or in the next call.
    """
    if torch.get_default_device().type != "meta":
        return make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are not there; a build with values warns of the others again
        if not runs_code:
            with contextlib.suppress(Exception):
                return make()
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            return _without_data(make())


def _without_data(network: nn.Module) -> nn.Module:
    """A copy on ``meta``; what the network's own code may have kept of it is not changed."""
    tensors = [leaf for module in network.modules() for leaf in tree_leaves(vars(module)) if isinstance(leaf, Tensor)]
    copies: dict[int, Tensor] = {}
    for tensor in tensors:
        empty = tensor.detach().to("meta")
        parameter = isinstance(tensor, nn.Parameter)
        copies[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if parameter else empty
    return copy.deepcopy(network, copies)
