"""The eight-layer student of Liu et al., Knowledge Representing, 2019, section 4.2.1, inferred from its printed sizes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from flowstill.errors import NetworkError
from flowstill.nets.layers import ConvBNReLU, initialise_he
from flowstill.nets.registry import register_network
from flowstill.nets.resnet import ZeroPad

_STEM = 16  # channels of the first convolution


class ResidualModule(nn.Module):
    """Three 3x3 convolutions beside a zero-padding shortcut; the first strides by 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBNReLU(in_channels, out_channels, 3, stride=2)
        self.conv2 = ConvBNReLU(out_channels, out_channels, 3)
        self.conv3 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.shortcut = ZeroPad(in_channels, out_channels, stride=2)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, ceil(H / 2), ceil(W / 2))."""
        residual = self.bn(self.conv3(self.conv2(self.conv1(x))))
        out: Tensor = self.relu(residual + self.shortcut(x))
        return out


@register_network("resnet8-kr", about="2 modules of 3 convolutions, inferred (Liu et al. 2019), channels 16-32-64")
class ResNet8KR(nn.Sequential):
    """A 3x3 convolution to 16 channels, two residual modules, global average pooling, one linear layer.

    Images are (B, in_channels, H, W) of any size.

    The paper says 8 layers in 2 residual modules, 0.12 M parameters, 0.09 M reduced. A CIFAR ResNet-8 has 0.075 M; this
    layout fits both numbers. Strides are not given: with 2 and 2, the maps have the teacher's last two sizes.

    Args:
        width: channels of the two modules; (28, 56) is the reduced student.

    Raises:
        NetworkError: ``width`` is not two whole numbers of at least 16 that do not decrease.

    >>> [sum(p.numel() for p in ResNet8KR(width=width).parameters()) for width in ((32, 64), (28, 56))]
    [116890, 90242]
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, *, width: Sequence[int] = (32, 64)) -> None:
        if not (isinstance(width, Sequence) and len(width) == 2 and all(type(w) is int for w in width)):
            raise NetworkError(f"width {width!r}: give the channels of the two modules, such as [28, 56].")
        if not _STEM <= width[0] <= width[1]:
            raise NetworkError(
                f"width {list(width)}: zero-padding shortcuts cannot drop channels. "
                f"Give widths of at least {_STEM}, the first convolution's, that do not decrease."
            )
        super().__init__()
        self.conv0 = ConvBNReLU(in_channels, _STEM, 3)
        self.module1 = ResidualModule(_STEM, width[0])
        self.module2 = ResidualModule(width[0], width[1])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width[1], num_classes)
        initialise_he(self)
