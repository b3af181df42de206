"""Networks made by a user's own function: ``path/file.py:factory``. Naming one runs the file."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from flowstill.errors import NetworkError, did_you_mean
from flowstill.nets.registry import DECIDED, no_option, whole_network
from flowstill.schema.code import import_file, run_code

_MARK = ".py:"


def needs_trust(name: str) -> bool:
    """Whether building a network of this name runs code from a file.

    >>> needs_trust("nets/mine.py:make"), needs_trust("timm:resnet18")
    (True, False)
    """
    return _MARK in name


def make(name: str, num_classes: int | None, in_channels: int, options: dict[str, Any]) -> nn.Module:
    """Import the file and call the factory with the arguments that its signature takes.

    ``num_classes`` and ``in_channels`` are left out where it takes none, ``num_classes`` also where it is None.

    Raises:
        NetworkError: the file or the factory is missing, an option is unknown, the user's code raises (named with file
            and line), or it does not return a network.
    """
    file, _, factory = name.rpartition(":")
    path = Path(file).expanduser()
    function = _find(import_file(path, NetworkError), factory, path)
    arguments = _arguments(function, name, num_classes, in_channels, options)
    network = run_code(lambda: function(**arguments), path, f"{name} failed", NetworkError)
    return whole_network(name, network)


def _find(module: types.ModuleType, factory: str, path: Path) -> Callable[..., Any]:
    function: Callable[..., Any] | None = getattr(module, factory, None)
    if callable(function):
        return function
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    what = "does not define" if function is None else "has no function but a value of the name"
    raise NetworkError(f"{path} {what} {factory!r}. {did_you_mean(factory, own)}".rstrip())


def _arguments(
    function: Callable[..., Any], name: str, num_classes: int | None, in_channels: int, options: dict[str, Any]
) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    taken = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option in options:
        if option not in taken and not takes_all:
            free = [t for t in taken if t not in DECIDED]
            raise no_option(name, option, free)
    given = {"in_channels": in_channels} | ({} if num_classes is None else {"num_classes": num_classes})
    arguments = {key: value for key, value in given.items() if key in taken or takes_all} | options
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    lacking = [key for key in needed if key not in arguments or key not in taken]
    if lacking:
        raise NetworkError(f"{name} needs {', '.join(map(repr, lacking))}: give it as an option, or give it a default.")
    return arguments
