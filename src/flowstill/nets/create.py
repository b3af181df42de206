"""A network by its name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowstill.errors import NetworkError, did_you_mean
from flowstill.nets import (
    factories,
    inception_bn,
    libraries,
    mobilenet,
    resnet,
    resnet8_kr,
    resnet_imagenet,
    resnext,
    vgg,
)
from flowstill.nets.spec import Net, is_object
from flowstill.nets.weights import head_classes, load_weights

_LISTED = tuple(f"resnet{end}" for end in ("8", "14", "20", "26", "32", "44", "56", "110", "14x4", "32x4"))
_PAPERS: dict[str, tuple[Callable[..., nn.Module] | str, str]] = {  # a function, or the library's name; about it
    "resnet8-kr": (resnet8_kr.ResNet8KR, "2 modules of 3 convolutions, inferred (Liu et al. 2019), channels 16-32-64"),
    "vgg-teacher": (vgg.teacher, "VGG (Lee et al. 2018), 2-2-3-3 convolutions, for 32 pixels"),
    "vgg-student": (vgg.student, "VGG (Lee et al. 2018), 1 convolution in each of 4 blocks, for 32 pixels"),
    "vgg-student-strided": (vgg.strided_student, "VGG (Lee et al. 2018), 1 strided convolution in each of 4 blocks"),
    "mobilenet-teacher": (mobilenet.teacher, "MobileNet (Lee et al. 2018), 9 separable convolutions"),
    "mobilenet-student": (mobilenet.student, "MobileNet (Lee et al. 2018), 5 separable convolutions"),
    "resnext-teacher": (resnext.teacher, "ResNeXt (Lee et al. 2018), 3 blocks of 4 branches"),
    "resnext-student": (resnext.student, "ResNeXt (Lee et al. 2018), 3 blocks of 2 branches"),
    "resnet20-imagenet": (resnet_imagenet.resnet20, "ResNet for 224 pixels, 2-2-3-2 blocks (Yim et al. 2017)"),
    "resnet34-imagenet": ("torchvision:resnet34", "ResNet for 224 pixels, 3-4-6-3 blocks (Yim et al. 2017)"),
    # Its pretrained weights in torchvision (18.1 % error) are better than the teacher of Liu et al. (22.7 %); weights
    # near that teacher's are timm's resnet101.tv_in1k (22.6 %).
    "resnet101-imagenet": ("torchvision:resnet101", "ResNet for 224 pixels, the teacher of Liu et al. (2019)"),
    "inception-bn": (inception_bn.InceptionBN, "Inception with BatchNorm (Ioffe and Szegedy 2015), for 224 pixels"),
}
NAME_FORMS = {
    "resnetD, resnetDxW": "a CIFAR ResNet of any depth D = 6n+2, with W times the channels",
    "timm:NAME": "any network of timm",
    "torchvision:NAME": "any classifier of torchvision",
    "FILE.py:FACTORY": "what your own function returns; in a recipe it needs --trust-code",
}


def known_nets() -> dict[str, str]:
    """Our own networks by name, each with one line about it. ``NAME_FORMS`` tells what else has a name."""
    nets = {}
    for name in _LISTED:
        says = resnet.arguments(name) or {}
        blocks = (says["depth"] - 2) // 6
        channels = "-".join(str(width * says.get("width", 1)) for width in (16, 32, 64))
        count = "1 block" if blocks == 1 else f"{blocks} blocks"
        nets[name] = f"CIFAR ResNet (He et al. 2016), {count} in each of 3 sections, channels {channels}"
    return nets | {name: about for name, (_, about) in _PAPERS.items()}


def create(
    name: str,
    num_classes: int | None = None,
    in_channels: int = 3,
    *,
    weights: str | Path | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network: ``resnet8``, ``vgg-teacher``, ``timm:resnet18``, ``torchvision:vgg11``, ``file.py:factory``.

    num_classes: None means the weights file's number, else the network's own default: 10 or 100 for ours of CIFAR, 1000
    for most others.
    weights: a file to start from; see ``load_weights``. Fresh weights otherwise, drawn from PyTorch's global generator.
    options: keyword arguments of the constructor, such as ``width=2``; ``pretrained=True`` for timm and torchvision.

    Under ``torch.device("meta")`` the network holds no data. There, and where a weights file is given, pretrained
    weights are not fetched.

    Raises: NetworkError naming the nearest valid name or option, or what is wrong with the file.

    >>> create("resnet8", num_classes=10).fc
    Linear(in_features=64, out_features=10, bias=True)
    """
    for what, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value is not None and (type(value) is not int or value < 1):
            raise NetworkError(f"{what} is a whole number from 1, not {value!r}.")
    fetch = weights is None and torch.get_default_device().type != "meta"
    make = _maker(name, in_channels, options, fetch)
    network = _on_default_device(lambda: make(num_classes))
    if weights is None:
        return network
    theirs = head_classes(network, weights) if num_classes is None else None
    if theirs is not None:
        network = _on_default_device(lambda: make(theirs))
    load_weights(network, weights)
    return network


def build(
    spec: Net, *, num_classes: int | None = None, in_channels: int = 3, weights: str | Path | None = None
) -> nn.Module:
    """The network that a recipe's ``Net`` names.

    Raises: NetworkError as ``create`` does, and where the options hold what the data or the job decides.
    """
    for option, decides in (("num_classes", "data set"), ("in_channels", "data set"), ("weights", "job")):
        if option in spec.options:
            raise NetworkError(f"{spec.name}: {option!r} is no option of a network; the {decides} says it.")
    return create(spec.name, num_classes, in_channels, weights=weights, **spec.options)


def _maker(name: str, in_channels: int, options: dict[str, Any], fetch: bool) -> Callable[[int | None], nn.Module]:
    """What builds the network, given the number of classes. Raises: NetworkError for an unknown name."""
    if name in _PAPERS:
        paper, _ = _PAPERS[name]
        if isinstance(paper, str):
            return _maker(paper, in_channels, options, fetch)
        return functools.partial(_own, name, paper, {}, in_channels, options)
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
    try:
        arguments = resnet.arguments(name)
    except NetworkError as error:
        raise NetworkError(f"{error} {_elsewhere(name)}".rstrip()) from None
    if arguments is None:
        near = _elsewhere(name) or did_you_mean(name, known_nets(), count=3)
        if name.endswith(".py"):
            near = f"To use a function in that file, write '{name}:FUNCTION'."
        raise NetworkError(f"No network is called {name!r}. {near}".rstrip())
    return functools.partial(_own, name, resnet.ResNet, arguments, in_channels, options)


def _own(
    name: str,
    make: Callable[..., nn.Module],
    arguments: dict[str, Any],
    in_channels: int,
    options: dict[str, Any],
    num_classes: int | None,
) -> nn.Module:
    """One of ours. ``arguments``: what the name says to the constructor, whose options are its keyword-only ones."""
    known = [key for key, p in inspect.signature(make).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option in arguments:
            raise NetworkError(f"{name} says the {option} in its name; drop the option {option!r} or the name's end.")
        if option not in known:
            near = did_you_mean(option, known) if known else "It takes no options."
            raise NetworkError(f"{name} has no option {option!r}. {near}".rstrip())
    classes = {} if num_classes is None else {"num_classes": num_classes}
    return make(in_channels=in_channels, **classes, **arguments, **options)


def _elsewhere(name: str) -> str:
    """A sentence that offers the libraries' networks of just this name."""
    found = [f"'{prefix}:{name}'" for prefix in libraries.PREFIXES if name in libraries.names(prefix)]
    return f"Did you mean {' or '.join(found)}?" if found else ""


def _on_default_device(make: Callable[[], nn.Module]) -> nn.Module:
    """Build the network; where it computes with values, which ``meta`` has none of, build it on the CPU first."""
    try:
        return make()
    except Exception:
        if torch.get_default_device().type != "meta":
            raise
        with torch.device("cpu"):
            return make().to("meta")
