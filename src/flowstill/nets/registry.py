"""Networks by name: each registers itself in the file that defines it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn
from torch.nn.parameter import is_lazy

from flowstill.errors import NetworkError, did_you_mean
from flowstill.schema.registry import Registry

Make = Callable[..., nn.Module]
M = TypeVar("M", bound=Make)
DECIDED = ("num_classes", "in_channels")  # by the data set


@dataclass(frozen=True)
class Network:
    """A network that has a name.

    Attributes:
        make: builds it; its keyword-only parameters are the network's options. For an alias, the other name.
        about: one line.
        said: arguments that the name itself gives, such as the depth.
    """

    make: Make | str
    about: str
    said: dict[str, Any] = field(default_factory=dict)


NETWORKS: Registry[Network] = Registry("network", "flowstill.nets", error=NetworkError)


def register_network(name: str, *, about: str = "") -> Callable[[M], M]:
    """Let recipes, ``create`` and the command line name a network.

    It decorates a class or a function that returns a ``torch.nn.Module`` and takes ``num_classes`` and ``in_channels``.
    Its keyword-only parameters are the network's options. Use ``flowstill.create`` to try it.

    Args:
        name: what the network is called. It may contain no colon.
        about: one line for ``flowstill list nets``.

    Raises:
        NetworkError: the name is taken, has a colon or the form of a CIFAR ResNet's, or a parameter is missing.

    Example:
        >>> @register_network("linear", about="one linear layer over all pixels of a 8x8 image")
        ... def linear(num_classes=10, in_channels=3, *, bias=True):
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes, bias=bias))
        >>> from flowstill.nets import create
        >>> create("linear", num_classes=2, in_channels=1, bias=False)[1]
        Linear(in_features=64, out_features=2, bias=False)
    """

    def register(make: M) -> M:
        if not callable(make):
            raise NetworkError(f"Expected a class or a function under @register_network({name!r}). Received: {make!r}.")
        missing = [key for key in DECIDED if key not in inspect.signature(make).parameters]
        if missing:
            raise NetworkError(
                f"Network {name!r}: expected parameters 'num_classes' and 'in_channels'. {make.__name__!r} takes no "
                f"{missing[0]!r}."
            )
        from flowstill.nets.resnet import described

        if name not in NETWORKS and described(name):
            raise NetworkError(f"Network {name!r}: names of this form are CIFAR ResNets. Choose another.")
        add_network(name, Network(make, about), make.__module__)
        return make

    return register


def add_network(name: str, network: Network, origin: str) -> None:
    """Enter ``network``; ``origin`` is the module that defines it.

    Raises:
        NetworkError: it cannot have that name.
    """
    if ":" in str(name):
        raise NetworkError(f"Network {name!r}: a name with a colon belongs to a library or a file. Choose another.")
    NETWORKS.add(name, network, origin)


def no_option(whole: str, option: str, known: list[str]) -> NetworkError:
    """The error for an option that ``whole`` does not have, with the nearest of the ``known`` ones."""
    near = did_you_mean(option, known) if known else "It takes no options."
    return NetworkError(f"{whole} has no option {option!r}. {near}".rstrip())


def whole_network(name: str, network: Any) -> nn.Module:
    """What a user's code returned, if it is a network.

    Raises:
        NetworkError: it is not, or its weights have no size.
    """
    if not isinstance(network, nn.Module):
        kind = f"the class {network.__name__}" if isinstance(network, type) else f"a {type(network).__name__}"
        raise NetworkError(f"{name}: expected a torch.nn.Module. It returned {kind}. Return the network itself.")
    lazy = [key for key, tensor in network.state_dict(keep_vars=True).items() if is_lazy(tensor)]
    if lazy:
        raise NetworkError(f"{name}: {lazy[0]!r} has no size yet. Run one forward in the function, or give the size.")
    return network
