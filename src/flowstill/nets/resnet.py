"""CIFAR ResNets of depth 6n+2: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowstill.errors import NetworkError
from flowstill.nets.layers import initialise_he
from flowstill.nets.registry import Network, add_network

LARGEST_DEPTH = 1202  # the deepest that the paper trains
_INITS: dict[str, Callable[[Tensor], Tensor]] = {
    "he": partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
    "xavier": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
}
_NAME = re.compile(r"resnet(?P<depth>[1-9][0-9]{0,5})(x(?P<width>[1-9][0-9]?))?")


class ZeroPad(nn.Module):
    """Option A shortcut, without parameters: every ``stride``-th row and column, then zero channels.

    Channels 0 .. in_channels-1 of the output are the copy; those after them are zero.

    >>> ZeroPad(1, 3, stride=2)(torch.arange(16.0).reshape(1, 1, 4, 4))[0, :, :, 1]
    tensor([[ 2., 10.],
            [ 0.,  0.],
            [ 0.,  0.]])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.zeros = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.zeros))

    def extra_repr(self) -> str:
        """What ``print(network)`` shows."""
        return f"stride={self.stride}, zeros={self.zeros}"


def _shortcut(in_channels: int, out_channels: int, stride: int, kind: str) -> nn.Module:
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    if kind == "A":
        return ZeroPad(in_channels, out_channels, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut. No operation overwrites a map, so that each may be tapped."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride, shortcut)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(residual + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """A 3x3 convolution, three sections of (depth - 2) / 6 basic blocks, global average pooling, one linear layer.

    Args:
        depth: 8, 14, 20, ... up to 1202.
        width: a factor on the channels 16-32-64, or the three channel numbers themselves.
        shortcut: at the start of a section, ``A`` pads with zero channels (the paper's choice), ``B`` is a 1x1
            convolution with BatchNorm.
        init: of the convolutions. ``he`` is N(0, 2 / fan_out) with fan_out = 9 out_channels (as in Facebook's ResNet
            code), ``xavier`` Glorot's uniform distribution, ``orthogonal`` orthogonal rows. BatchNorm starts as 1 and 0,
            the linear layer as in PyTorch with a bias of 0. ``msra`` is He et al. (ICCV 2015, Eq. 10), as the paper on
            FSP has it: N(0, 2 / fan_in) in convolutions and in the linear layer.

    Raises:
        NetworkError: an argument is invalid; the text names it.

    >>> sum(p.numel() for p in ResNet(8).parameters())
    75290
    >>> ResNet(8, num_classes=5, in_channels=1, width=(14, 28, 56))(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        width: float | Sequence[int] = 1,
        shortcut: Literal["A", "B"] = "A",
        init: Literal["he", "xavier", "orthogonal", "msra"] = "he",
    ) -> None:
        super().__init__()
        _check_depth(depth)
        if init not in (*_INITS, "msra"):
            raise NetworkError(f"init {init!r}: choose {', '.join(map(repr, (*_INITS, 'msra')))}.")
        if shortcut not in ("A", "B"):
            raise NetworkError(f"shortcut {shortcut!r}: choose 'A' (zero padding) or 'B' (1x1 convolution).")
        widths = _widths(width)
        if shortcut == "A" and list(widths) != sorted(widths):
            raise NetworkError(
                f"width {list(widths)}: zero-padding shortcuts cannot drop channels. "
                "Let the widths not decrease, or set shortcut to 'B'."
            )
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        blocks = (depth - 2) // 6
        self.layer1 = _section(widths[0], widths[0], 1, blocks, shortcut)
        self.layer2 = _section(widths[0], widths[1], 2, blocks, shortcut)
        self.layer3 = _section(widths[1], widths[2], 2, blocks, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2], num_classes)
        self._initialise(init)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) of any size -> logits (B, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits

    def _initialise(self, init: str) -> None:
        if init == "msra":
            initialise_he(self)
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _INITS[init](module.weight)
        nn.init.zeros_(self.fc.bias)


def _section(in_channels: int, out_channels: int, stride: int, blocks: int, shortcut: str) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(blocks - 1)))


def _widths(width: float | Sequence[int]) -> tuple[int, int, int]:
    """The three sections' channels."""
    if isinstance(width, (int, float)) and not isinstance(width, bool) and 0 < width < float("inf"):
        return max(1, round(16 * width)), max(1, round(32 * width)), max(1, round(64 * width))
    if isinstance(width, Sequence) and len(width) == 3 and all(type(w) is int and w > 0 for w in width):
        return width[0], width[1], width[2]
    raise NetworkError(f"width {width!r}: give a factor above 0 on 16-32-64 channels, or three whole numbers.")


def _check_depth(depth: int) -> None:
    if 8 <= depth <= LARGEST_DEPTH and depth % 6 == 2:
        return
    below = min(max(8, depth - (depth - 2) % 6), LARGEST_DEPTH)
    near = [f"resnet{d}" for d in (below, below + 6) if d <= LARGEST_DEPTH]
    raise NetworkError(
        f"A CIFAR ResNet has a depth of 6n+2, from 8 to {LARGEST_DEPTH}, not {depth}. Nearest: {' or '.join(near)}."
    )


def described(name: str) -> bool:
    """Whether a name has the form of a CIFAR ResNet's: ``resnetD`` or ``resnetDxW``."""
    return _NAME.fullmatch(name) is not None


def named_resnet(name: str) -> Network | None:
    """The CIFAR ResNet that a name describes; None if the name has another form.

    Raises:
        NetworkError: no CIFAR ResNet has that depth; the text gives the nearest.

    >>> named_resnet("resnet26").said, named_resnet("resnet32x4").said, named_resnet("vgg11")
    ({'depth': 26}, {'depth': 32, 'width': 4}, None)
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    said = {key: int(value) for key, value in match.groupdict().items() if value is not None}
    _check_depth(said["depth"])
    blocks = (said["depth"] - 2) // 6
    channels = "-".join(str(width * said.get("width", 1)) for width in (16, 32, 64))
    count = "1 block" if blocks == 1 else f"{blocks} blocks"
    about = f"CIFAR ResNet (He et al. 2016), {count} in each of 3 sections, channels {channels}"
    return Network(ResNet, about, said)


for _end in ("8", "14", "20", "26", "32", "44", "56", "110", "14x4", "32x4"):
    if _network := named_resnet(f"resnet{_end}"):
        add_network(f"resnet{_end}", _network, __name__)
