"""The 20-layer ResNet of Yim et al., A Gift from Knowledge Distillation, CVPR 2017, section 4.3, for 224 pixels."""

from __future__ import annotations

from torch import nn

from flowstill.nets.registry import register_network


@register_network("resnet20-imagenet", about="ResNet for 224 pixels, 2-2-3-2 blocks (Yim et al. 2017)")
def resnet20(num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """torchvision's ResNet with 2, 2, 3 and 2 basic blocks, its names and its (MSRA) initialisation.

    ResNet-34, the paper's teacher, has 3, 4, 6 and 3; ResNet-18 has 2 each.
    """
    from torchvision.models.resnet import BasicBlock, ResNet

    network: nn.Module = ResNet(BasicBlock, [2, 2, 3, 2], num_classes)
    if in_channels != 3:
        network.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network
