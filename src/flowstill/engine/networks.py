"""What happens to a network before a stage trains it."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_fabric import Fabric
from torch import nn

from flowstill.engine.precision import Precision
from flowstill.errors import NetworkError
from flowstill.features.copying import copied
from flowstill.features.outputs import settle_logits
from flowstill.nets import Net, build


def ready(given: nn.Module | None, spec: Net, shape: Sequence[int], classes: int, *, trains: bool = True) -> nn.Module:
    """A job's network at the start of its first stage; its forward returns the logits alone.

    Args:
        given: the network if it was given as an object; a copy is made, without wrappers, in float32, in training mode.
        spec: otherwise, says how to build it.
        shape: of the images, (C, H, W).
        classes: of the data.
        trains: whether it will be trained.

    Raises:
        NetworkError: it cannot be built, copied or run, or it is unclear which output holds the logits.
    """
    network = build(spec, num_classes=classes, in_channels=shape[0]) if given is None else copied(given).float().train()
    settle_logits(network, shape, classes, trains=trains)
    return network


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
            f"{type(network).__name__} has no linear layer and no convolution to serve as its head. Leave "
            "'fresh_head' out."
        )
    found[-1].reset_parameters()
