"""Networks of timm and torchvision, by name; each library is imported on first use."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flowstill.errors import NetworkError, did_you_mean
from flowstill.nets.layers import initialise_he
from flowstill.nets.registry import no_option

PREFIXES = ("timm", "torchvision")
_log = logging.getLogger("flowstill")
# Fresh, these two would return auxiliary logits beside the logits, and warn of a change in their initialisation.
_FRESH = {name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")}
_READS_FILES = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"}  # some timm versions unpickle these
_NO_OPTIONS = {"self", "args", "kwargs", "weights", "progress", "num_classes", "in_chans"}


def names(prefix: str) -> list[str]:
    """All classifiers of ``timm`` or ``torchvision``, without the prefix."""
    if prefix == "timm":
        import timm

        return list(timm.list_models())
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _tagged() -> list[str]:
    """The names in timm with the tag of the pretrained weights, such as ``resnet18.a1_in1k``."""
    import timm

    return list(timm.list_pretrained())


def make(
    prefix: str, name: str, num_classes: int | None, in_channels: int, options: dict[str, Any], fetch: bool = True
) -> nn.Module:
    """Build ``prefix:name``, with fresh weights unless ``options`` hold ``pretrained: true`` and ``fetch`` allows it.

    Fresh weights are the library's, or with ``init: msra`` those of ``initialise_he``. Pretrained weights are fetched by
    the library itself; a head for another number of classes is fresh, with a notice.

    Raises:
        NetworkError: unknown name or option, or the library cannot build it or fetch its weights.
    """
    whole = f"{prefix}:{name}"
    options = dict(options)
    pretrained, init = options.pop("pretrained", False), options.pop("init", None)
    if not isinstance(pretrained, bool):
        raise NetworkError(f"{whole}: expected true or false for 'pretrained'. Received: {pretrained!r}.")
    if init not in (None, "msra"):
        raise NetworkError(f"{whole}: init {init!r}: choose 'msra', or leave it out for the library's own.")
    if init and pretrained:
        raise NetworkError(f"{whole}: init 'msra' would draw the pretrained weights anew. Drop 'init' or 'pretrained'.")
    for option in _READS_FILES & set(options):
        raise NetworkError(f"{whole}: {option!r} could run code from a file. Set 'weights: FILE' instead.")
    known = _tagged() if prefix == "timm" and "." in name else names(prefix)
    if name not in known:
        near = did_you_mean(name, known, count=3)
        raise NetworkError(f"{prefix} has no classifier {name!r}. {near}".rstrip())
    build = _timm if prefix == "timm" else _torchvision
    pretrained = pretrained and fetch
    try:
        network = build(name, num_classes, in_channels, pretrained, options)
    except NetworkError:
        raise
    except Exception as error:
        unknown = [option for option in options if f"argument '{option}'" in str(error)]
        if isinstance(error, TypeError) and unknown:
            raise no_option(whole, unknown[0], _options(prefix, name)) from None
        raise NetworkError(f"{whole} {_problem(error, pretrained, options)}") from error
    if init:
        initialise_he(network)
    return network


def _problem(error: Exception, pretrained: bool, options: dict[str, Any]) -> str:
    text = f"{type(error).__name__}: {error}"
    if pretrained:
        return f"could not be built with pretrained weights ({text}). Offline, set 'weights: FILE' instead."
    return f"cannot be built with options {options} ({text})."


def _timm(name: str, num_classes: int | None, in_channels: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    import timm

    if num_classes is not None:
        options = {**options, "num_classes": num_classes}
    network: nn.Module = timm.create_model(name, pretrained=pretrained, in_chans=in_channels, **options)
    if pretrained:
        _tell_head(f"timm:{name}", timm.get_pretrained_cfg(name).num_classes, num_classes)
    return network


def _torchvision(
    name: str, num_classes: int | None, in_channels: int, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    from torchvision import models

    known = _options("torchvision", name)
    for option in options:
        if option not in known:  # some constructors would ignore it silently
            raise no_option(f"torchvision:{name}", option, known)
    if num_classes is None:
        num_classes = 1000
    fresh = functools.partial(models.get_model, name, weights=None, **{**_FRESH.get(name, {}), **options})
    if not pretrained:
        network: nn.Module = fresh(num_classes=num_classes)
        return network if in_channels == 3 else _with_channels(network, in_channels, f"torchvision:{name}")
    if in_channels != 3:
        raise NetworkError(
            f"torchvision:{name} is pretrained on 3 channels, not {in_channels}. "
            "Name a network of timm, which adapts pretrained weights, or drop 'pretrained'."
        )
    network = models.get_model(name, weights="DEFAULT", **options)
    _tell_head(f"torchvision:{name}", 1000, num_classes)
    return _with_heads(network, fresh(num_classes=num_classes))


def _tell_head(whole: str, pretrained: int, wanted: int | None) -> None:
    if wanted not in (None, pretrained):
        _log.warning(
            f"{whole}: the pretrained head has {pretrained} classes, the network {wanted}; "
            "the head starts from fresh weights."
        )


def _with_heads(network: nn.Module, fresh: nn.Module) -> nn.Module:
    """``network`` with those layers of ``fresh`` whose shapes differ: the heads, for another number of classes."""
    for path, module in list(fresh.named_modules()):
        old = network.get_submodule(path)
        own = [p.shape for p in module.parameters(recurse=False)]
        if own != [p.shape for p in old.parameters(recurse=False)]:
            network.set_submodule(path, module)
    return network


def _with_channels(network: nn.Module, in_channels: int, whole: str) -> nn.Module:
    """``network`` with its first convolution taking ``in_channels``, with fresh weights of the same standard deviation."""
    path, old = next((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
    if old.in_channels != 3 or old.groups != 1:
        raise NetworkError(
            f"{whole} cannot take {in_channels} channels: its first convolution, {path!r}, does not read the image."
        )
    # Torch types a convolution's shape as tuples of any length, which its constructor does not take.
    shape: dict[str, Any] = {name: getattr(old, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    new = nn.Conv2d(in_channels, old.out_channels, bias=old.bias is not None, padding_mode=old.padding_mode, **shape)
    with torch.no_grad():
        new.weight.normal_().mul_(old.weight.std())
    if old.bias is not None:
        new.bias = old.bias
    network.set_submodule(path, new)
    return network


def _options(prefix: str, name: str) -> list[str]:
    """All parameters of the functions and classes in the Python module where the network is made."""
    builder = _builder(prefix, name)
    found: set[str] = set()
    for value in vars(sys.modules[builder.__module__]).values():
        if inspect.isclass(value) or inspect.isfunction(value):
            with contextlib.suppress(TypeError, ValueError):  # some classes of C code have no signature
                found.update(inspect.signature(value).parameters)
    return sorted(found - _NO_OPTIONS)


def _builder(prefix: str, name: str) -> Callable[..., nn.Module]:
    builder: Callable[..., nn.Module]
    if prefix == "timm":
        import timm

        builder = timm.models.model_entrypoint(name)
    else:
        import torchvision

        builder = torchvision.models.get_model_builder(name)
    return builder
