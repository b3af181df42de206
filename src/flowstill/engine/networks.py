"""Networks on their way into a stage."""

from __future__ import annotations

import copy

from lightning_fabric import Fabric
from torch import nn

from flowstill.engine.precision import Precision
from flowstill.errors import NetworkError
from flowstill.features.modules import unwrapped


def copy_of(network: nn.Module) -> nn.Module:
    """A network that is given as an object, to be trained or read in its stead: without wrappers, in float32."""
    return copy.deepcopy(unwrapped(network)).float().train()


def placed(network: nn.Module, fabric: Fabric, precision: Precision) -> nn.Module:
    """The network on the device, its weights in the run's layout."""
    return network.to(fabric.device).to(memory_format=precision.memory_format)


def fresh_head(network: nn.Module) -> None:
    """Draw the last linear layer, or convolution where there is none, anew, from torch's generator.

    Raises: NetworkError if the network has neither.
    """
    layers = [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    found = [m for m in layers if isinstance(m, nn.Linear)] or layers
    if not found:
        raise NetworkError(
            f"{type(network).__name__} has no linear layer and no convolution that could be its head; leave "
            "'fresh_head' out."
        )
    found[-1].reset_parameters()
