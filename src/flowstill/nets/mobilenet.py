"""The MobileNets of Lee et al., Self-supervised Knowledge Distillation Using SVD, ECCV 2018, Fig. 4b."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from torch import nn

from flowstill.nets.layers import ConvBNReLU, initialise_he
from flowstill.nets.registry import register_network


class Separable(nn.Sequential):
    """A depthwise 3x3 convolution, then a 1x1 one, each with BatchNorm and ReLU: Howard et al. (2017), Fig. 3."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        depthwise = ConvBNReLU(in_channels, in_channels, 3, stride, groups=in_channels)
        super().__init__(OrderedDict(depthwise=depthwise, pointwise=ConvBNReLU(in_channels, out_channels, 1)))


class MobileNet(nn.Sequential):
    """A 3x3 convolution to 32 channels, separable convolutions, global average pooling, one linear layer.

    Images are (B, in_channels, H, W) of any size. ``dsc64`` holds the separable convolutions to 64 channels, and so on;
    ``dsc128``, ``dsc256`` and ``dsc512`` start with a stride of 2. The paper's taps are ``dsc64`` to ``dsc512``.

    Args:
        sections: for each, the number of channels and of separable convolutions.
    """

    def __init__(self, sections: Iterable[tuple[int, int]], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv0 = ConvBNReLU(in_channels, 32, 3)
        before = 32
        for width, count in sections:
            first = Separable(before, width, 2 if width in (128, 256, 512) else 1)
            others = (Separable(width, width, 1) for _ in range(count - 1))
            self.add_module(f"dsc{width}", nn.Sequential(first, *others))
            before = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(before, num_classes)
        initialise_he(self)


# "Removing the last four" separable convolutions of MobileNet v1 contradicts Table 1's size. Its 2.23 M parameters and
# 98.4 MFLOPs fit v1 without four of its five repeats at 512 channels and without the stride at 1024: inferred.
@register_network("mobilenet-teacher", about="MobileNet (Lee et al. 2018), 9 separable convolutions")
def teacher(num_classes: int = 100, in_channels: int = 3) -> MobileNet:
    """Nine separable convolutions.

    >>> sum(p.numel() for p in teacher().parameters())
    2234276
    """
    return MobileNet([(64, 1), (128, 2), (256, 2), (512, 2), (1024, 2)], num_classes, in_channels)


@register_network("mobilenet-student", about="MobileNet (Lee et al. 2018), 5 separable convolutions")
def student(num_classes: int = 100, in_channels: int = 3) -> MobileNet:
    """One separable convolution for each number of channels.

    >>> sum(p.numel() for p in student().parameters())
    816676
    """
    return MobileNet([(64, 1), (128, 1), (256, 1), (512, 1), (1024, 1)], num_classes, in_channels)
