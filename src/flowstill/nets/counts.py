"""How large a network is: parameters and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flowstill.errors import NetworkError


@dataclass(frozen=True)
class Counts:
    """The size of a network.

    Attributes:
        parameters: number of trainable values, including BatchNorm's; shared ones count once.
        macs: multiply-accumulates for one image.
    """

    parameters: int
    macs: int


def count(network: nn.Module, shape: Sequence[int]) -> Counts:
    """Count parameters, and the multiply-accumulates of one forward in eval mode for one image of ``shape`` (C, H, W).

    Convolutions, matrix products and attention count; biases, norms, activations and pooling do not, as in the papers.
    The forward runs on the network's own device (also ``meta``) and leaves the network as it was.

    Raises:
        NetworkError: the network cannot take such an image.

    >>> count(nn.Conv2d(8, 16, 3, groups=4), (8, 12, 12))
    Counts(parameters=304, macs=28800)
    """
    first = next(network.parameters(), None)
    image = torch.zeros(1, *shape) if first is None else torch.zeros(1, *shape, device=first.device, dtype=first.dtype)
    training = {module: module.training for module in network.modules()}
    # Without a gradient, attention would take a fused path that the counter cannot see into.
    image = image.requires_grad_().clone()
    counter = FlopCounterMode(display=False)
    try:
        network.eval()
        with torch.enable_grad(), counter:
            network(image)
    except Exception as error:
        raise NetworkError(
            f"{type(network).__name__} cannot take an image of shape {tuple(shape)} (channels, height, width): {error}"
        ) from error
    finally:
        for module, flag in training.items():
            module.training = flag
    return Counts(sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2)
