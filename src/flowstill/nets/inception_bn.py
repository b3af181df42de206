"""Inception with BatchNorm: Ioffe and Szegedy, Batch Normalization, ICML 2015, Figure 5 of the preprint."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from flowstill.nets.layers import ConvBNReLU, initialise_he
from flowstill.nets.registry import register_network

# Channels: 1x1; 3x3, reduced and full; double 3x3, reduced and full; pooling and its 1x1. Figure 5 prints 576 for the
# output of 4c and 4d, and 1024 for 4e, but the branches add up to 608, 608 and 1056.
_MODULES: dict[str, tuple[int, int, int, int, int, Literal["avg", "max"], int]] = {
    "inception3a": (64, 64, 64, 64, 96, "avg", 32),
    "inception3b": (64, 64, 96, 64, 96, "avg", 64),
    "inception3c": (0, 128, 160, 64, 96, "max", 0),
    "inception4a": (224, 64, 96, 96, 128, "avg", 128),
    "inception4b": (192, 96, 128, 96, 128, "avg", 128),
    "inception4c": (160, 128, 160, 128, 160, "avg", 128),
    "inception4d": (96, 128, 192, 160, 192, "avg", 128),
    "inception4e": (0, 128, 192, 192, 256, "max", 0),
    "inception5a": (352, 192, 320, 160, 224, "avg", 128),
    "inception5b": (352, 192, 320, 192, 224, "max", 128),
}


class Inception(nn.Module):
    """Up to four branches side by side, joined along the channels: 1x1, 3x3, two 3x3, and pooling.

    Without channels for the 1x1 convolutions the module has a stride of 2, and no convolution follows the pooling.
    """

    def __init__(
        self,
        in_channels: int,
        one: int,
        three_reduced: int,
        three: int,
        double_reduced: int,
        double: int,
        pool: Literal["avg", "max"],
        projected: int,
    ) -> None:
        super().__init__()
        stride = 1 if one else 2
        if one:
            self.conv1x1 = ConvBNReLU(in_channels, one, 1)
        self.conv3x3 = nn.Sequential(
            ConvBNReLU(in_channels, three_reduced, 1), ConvBNReLU(three_reduced, three, 3, stride)
        )
        self.double3x3 = nn.Sequential(
            ConvBNReLU(in_channels, double_reduced, 1),
            ConvBNReLU(double_reduced, double, 3),
            ConvBNReLU(double, double, 3, stride),
        )
        pooling = nn.AvgPool2d(3, 1, 1) if pool == "avg" else nn.MaxPool2d(3, stride, 1)
        self.pool = nn.Sequential(pooling, ConvBNReLU(in_channels, projected, 1)) if projected else pooling
        self.out_channels = one + three + double + (projected or in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W), or half as high and wide, rounded up."""
        return torch.cat([branch(x) for branch in self.children()], 1)


@register_network("inception-bn", about="Inception with BatchNorm (Ioffe and Szegedy 2015), for 224 pixels")
class InceptionBN(nn.Sequential):
    """Two convolutions with poolings, ten Inception modules, global average pooling, one linear layer.

    Made for images of 224 pixels, (B, in_channels, H, W); it takes any size.
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        # The paper makes this one separable (a depth multiplier of 8); published networks use a full convolution.
        self.conv1 = ConvBNReLU(in_channels, 64, 7, 2)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2_reduce = ConvBNReLU(64, 64, 1)
        self.conv2 = ConvBNReLU(64, 192, 3)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        channels = 192
        for name, widths in _MODULES.items():
            module = Inception(channels, *widths)
            self.add_module(name, module)
            channels = module.out_channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        initialise_he(self)
