"""The 20-layer ResNet of Yim et al., A Gift from Knowledge Distillation, CVPR 2017, section 4.3, for 224 pixels."""

from __future__ import annotations

from typing import Literal

from torch import nn

from flowstill.errors import NetworkError
from flowstill.nets.layers import initialise_he
from flowstill.nets.registry import register_network


@register_network("resnet20-imagenet", about="ResNet for 224 pixels, 2-2-3-2 blocks (Yim et al. 2017)")
def resnet20(
    num_classes: int = 1000, in_channels: int = 3, *, init: Literal["torchvision", "msra"] = "torchvision"
) -> nn.Module:
    """torchvision's ResNet with 2, 2, 3 and 2 basic blocks, and its names.

    ResNet-34, the paper's teacher, has 3, 4, 6 and 3; ResNet-18 has 2 each.

    Args:
        init: ``torchvision`` is N(0, 2 / fan_out) in convolutions, ``msra`` He et al. (ICCV 2015, Eq. 10), as the paper has
            it: N(0, 2 / fan_in) in convolutions and in the linear layer.

    Raises:
        NetworkError: another ``init``.
    """
    if init not in ("torchvision", "msra"):
        raise NetworkError(f"init {init!r}: choose 'torchvision' or 'msra'.")
    from torchvision.models.resnet import BasicBlock, ResNet

    network: nn.Module = ResNet(BasicBlock, [2, 2, 3, 2], num_classes)
    if in_channels != 3:
        network.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    if init == "msra":
        initialise_he(network)
    return network
