"""The VGG networks of Lee et al., Self-supervised Knowledge Distillation Using SVD, ECCV 2018, Fig. 4a and Table 2."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import nn

from flowstill.errors import NetworkError
from flowstill.nets.layers import initialise_he
from flowstill.nets.registry import register_network

_WIDTHS = (64, 128, 256, 512)
_HIDDEN = 1024  # units of each fully connected layer


class VGG(nn.Sequential):
    """Four blocks of 3x3 convolutions with bias and ReLU, 64 to 512 channels, then fully connected layers of 1024.

    Images are (B, in_channels, 32, 32), since the first fully connected layer fixes the size. The paper's taps are
    ``block1`` to ``block4``, after the pooling; taps such as ``block1.relu2`` read the map before it.

    Args:
        convolutions: number of convolutions in each block.
        hidden: number of fully connected layers before the last one.
        strided: each block's only convolution has a stride of 2 instead of the pooling.
        padded: 3x3 convolutions keep the size (SAME) instead of losing a border (VALID).

    Raises:
        NetworkError: ``dropout`` is not a probability.
    """

    def __init__(
        self,
        convolutions: Sequence[int],
        hidden: int,
        num_classes: int,
        in_channels: int,
        dropout: float,
        *,
        strided: bool = False,
        padded: bool = True,
    ) -> None:
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise NetworkError(f"dropout {dropout!r}: give a probability from 0 to below 1.")
        super().__init__()
        for number, (width, count) in enumerate(zip(_WIDTHS, convolutions, strict=True), 1):
            self.add_module(f"block{number}", _block(in_channels, width, count, strided, padded))
            in_channels = width
        self.flatten = nn.Flatten()
        inputs = 512 * (4 if padded else 1)  # padded, 32 pixels shrink to 2x2; unpadded, to 15, 7, 3 and 1
        for number in range(1, hidden + 1):
            self.add_module(f"fc{number}", nn.Linear(inputs, _HIDDEN))
            self.add_module(f"fc{number}_relu", nn.ReLU())
            self.add_module(f"fc{number}_dropout", nn.Dropout(dropout))
            inputs = _HIDDEN
        self.fc = nn.Linear(inputs, num_classes)
        initialise_he(self)


def _block(in_channels: int, width: int, count: int, strided: bool, padded: bool) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, count + 1):
        layers[f"conv{number}"] = nn.Conv2d(in_channels, width, 3, 2 if strided else 1, 1 if padded else 0)
        layers[f"relu{number}"] = nn.ReLU()
        in_channels = width
    if not strided:
        layers["pool"] = nn.MaxPool2d(2)
    return nn.Sequential(layers)


@register_network("vgg-teacher", about="VGG (Lee et al. 2018), 2-2-3-3 convolutions, for 32 pixels")
def teacher(num_classes: int = 100, in_channels: int = 3, *, dropout: float = 0.5) -> VGG:
    """2, 2, 3 and 3 convolutions: VGG-16 without its last three.

    >>> sum(p.numel() for p in teacher().parameters())
    10885540
    """
    return VGG((2, 2, 3, 3), 2, num_classes, in_channels, dropout)


@register_network("vgg-student", about="VGG (Lee et al. 2018), 1 convolution in each of 4 blocks, for 32 pixels")
def student(num_classes: int = 100, in_channels: int = 3, *, dropout: float = 0.5) -> VGG:
    """One convolution in each block, one hidden layer. The paper does not mention dropout; the authors' code has it."""
    return VGG((1, 1, 1, 1), 1, num_classes, in_channels, dropout)


@register_network("vgg-student-strided", about="VGG (Lee et al. 2018), 1 strided convolution in each of 4 blocks")
def strided_student(
    num_classes: int = 100,
    in_channels: int = 3,
    *,
    dropout: float = 0.5,
    padding: Literal["VALID", "SAME"] = "VALID",
) -> VGG:
    """The student of Table 2, with strides of 2: maps of 15, 7, 3 and 1 pixels, or with SAME padding 16, 8, 4 and 2.

    SAME pads all four sides by one here; TensorFlow pads only right and bottom.

    Raises:
        NetworkError: another padding.
    """
    # Table 2 contradicts itself: its 15.6 MFLOPs fit convolutions with VALID padding, its 3.8 M parameters fit SAME.
    # The text says that no padding was performed.
    if padding not in ("VALID", "SAME"):
        raise NetworkError(f"padding {padding!r}: choose 'VALID' (none, as the paper's text says) or 'SAME'.")
    return VGG((1, 1, 1, 1), 1, num_classes, in_channels, dropout, strided=True, padded=padding == "SAME")
