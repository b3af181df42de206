"""What happens to a network before a stage trains it."""

from __future__ import annotations

import copy

from lightning_fabric import Fabric
from torch import nn

from flowstill.engine.precision import Precision
from flowstill.errors import NetworkError
from flowstill.features.modules import unwrapped


def copy_of(network: nn.Module) -> nn.Module:
    """A copy of a network that was given as an object: without wrappers, in float32, in training mode."""
    return copy.deepcopy(unwrapped(network)).float().train()


def placed(network: nn.Module, fabric: Fabric, precision: Precision) -> nn.Module:
    """The network on the device, its weights in the run's layout."""
    return network.to(fabric.device).to(memory_format=precision.memory_format)


def fresh_head(network: nn.Module) -> None:
    """Initialise the last linear layer again, or the last convolution where there is no linear layer.

    Raises:
        NetworkError: the network has neither.
    """
    layers = [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    found = [m for m in layers if isinstance(m, nn.Linear)] or layers
    if not found:
        raise NetworkError(
            f"{type(network).__name__} has no linear layer and no convolution that could be its head. Leave "
            "'fresh_head' out."
        )
    found[-1].reset_parameters()
