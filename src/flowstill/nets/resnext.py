"""The ResNeXts of Lee et al., Self-supervised Knowledge Distillation Using SVD, ECCV 2018, Fig. 4c."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from flowstill.errors import NetworkError
from flowstill.nets.layers import ConvBNReLU, initialise_he
from flowstill.nets.registry import register_network

_BRANCH = 64  # channels of each branch


class PoolAndPad(nn.Module):
    """The shortcut of a strided block: 2x2 average pooling, then zero channels, half before and half after the others.

    >>> import torch
    >>> PoolAndPad(2)(torch.ones(1, 2, 2, 2)).flatten()
    tensor([0., 1., 1., 0.])
    """

    def __init__(self, zeros: int) -> None:
        super().__init__()
        self.zeros = zeros

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D + zeros, ceil(H / 2), ceil(W / 2))."""
        before = self.zeros // 2
        return functional.pad(functional.avg_pool2d(x, 2, ceil_mode=True), (0, 0, 0, 0, before, self.zeros - before))

    def extra_repr(self) -> str:
        """What ``print(network)`` shows."""
        return f"zeros={self.zeros}"


class Block(nn.Module):
    """Branches of 1x1 and 3x3 convolutions to 64 channels each, their maps joined by a 1x1 one, beside a shortcut.

    All branches are one grouped convolution, an equivalent form (Xie et al. 2017, Fig. 3).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, branches: int) -> None:
        super().__init__()
        width = _BRANCH * branches
        self.reduce = ConvBNReLU(in_channels, width, 1)
        self.branches = ConvBNReLU(width, width, 3, stride, groups=branches)
        self.join = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity() if stride == 1 else PoolAndPad(out_channels - in_channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        residual = self.bn(self.join(self.branches(self.reduce(x))))
        return self.relu(residual + self.shortcut(x))  # type: ignore[no-any-return]  # nn.Module calls are Any


class ResNeXt(nn.Sequential):
    """A 3x3 convolution, three blocks of 64, 128 and 256 channels, global average pooling, one linear layer.

    Images are (B, in_channels, H, W) of any size. The paper's taps are ``conv0``, ``block1``, ``block2``, ``block3``.

    Raises:
        NetworkError: ``branches`` is not a whole number of at least 1.
    """

    def __init__(self, num_classes: int, in_channels: int, branches: int) -> None:
        if type(branches) is not int or branches < 1:
            raise NetworkError(f"branches {branches!r}: give a whole number from 1.")
        super().__init__()
        self.conv0 = ConvBNReLU(in_channels, 64, 3)
        self.block1 = Block(64, 64, 1, branches)
        self.block2 = Block(64, 128, 2, branches)
        self.block3 = Block(128, 256, 2, branches)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(256, num_classes)
        initialise_he(self)


@register_network("resnext-teacher", about="ResNeXt (Lee et al. 2018), 3 blocks of 4 branches")
def teacher(num_classes: int = 100, in_channels: int = 3, *, branches: int = 4) -> ResNeXt:
    """Four branches: Table 1's size. The authors' later code has eight.

    >>> sum(p.numel() for p in teacher().parameters())
    654116
    """
    return ResNeXt(num_classes, in_channels, branches)


@register_network("resnext-student", about="ResNeXt (Lee et al. 2018), 3 blocks of 2 branches")
def student(num_classes: int = 100, in_channels: int = 3, *, branches: int = 2) -> ResNeXt:
    """Two branches. Table 1's 247.6 MFLOPs contradict its 0.34 M parameters, which need 274: likely swapped digits.

    >>> sum(p.numel() for p in student().parameters())
    341284
    """
    return ResNeXt(num_classes, in_channels, branches)
