"""Taps named by hand that do not read a map (B, D, H, W): tokens, windows, maps with channels last."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import flowstill as fs
from flowstill.errors import ShapeError
from flowstill.features.pairs import pairs_by_hand
from flowstill.features.sections import find_sections


class Last(nn.Module):
    """A block of channels-last maps, as in Swin: over (B, H, W, D), or over tokens inside."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens, self.norm, self.mix = tokens, nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        shape = x.shape
        x = x.flatten(1, 2) if self.tokens else x
        return (x + self.mix(self.norm(x))).reshape(shape)


class Mixed(nn.Module):
    def __init__(self, tokens=False, size=8):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.block, self.act, self.last = Last(tokens), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1)
        self.flat, self.fc = nn.Flatten(2), nn.Linear(8, 10)
        self.windows = nn.Identity()

    def forward(self, x):
        x = self.conv(F.relu(self.stem(x)))
        x = self.act(self.block(x.permute(0, 2, 3, 1)))
        x = self.last(x.permute(0, 3, 1, 2))
        parts = self.windows(torch.cat(x.chunk(2, 3)))
        return self.fc(self.flat(x).mean(2) + parts.mean((0, 2, 3)))


def read(net, tap, shape=(3, 16, 16)):
    return pairs_by_hand(net, net, shape, [(("stem", tap), ("stem", tap))])


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("size", [16, 24])
@pytest.mark.parametrize("tap", ["block", "block:input", "act"])
def test_channels_last_are_never_read_as_channels_first(tokens, size, tap):
    """Of 16 pixels the map is 8x8x8, so its shape tells nothing."""
    with pytest.raises(ShapeError, match=rf"Tap '{tap}' of Mixed.*\(B, H, W, D\).*such as 'soft_logits'"):
        read(Mixed(tokens), tap, (3, size, size))


def test_channels_first_are_read():
    for tap in ("conv", "last:input", "last"):
        assert read(Mixed(), tap)[0].student.exit_shape[0] == 8


def test_tokens_and_parts_of_images_are_recognised():
    with pytest.raises(ShapeError, match=r"Tap 'flat' .*\(1, 8, 16\), most likely tokens \(B, N, D\)"):
        read(Mixed(), "flat")
    with pytest.raises(ShapeError, match=r"Tap 'windows' .*\(2, 8, 4, 2\).*windows or heads"):
        read(Mixed(), "windows")


def test_no_section_is_found_at_maps_with_channels_last():
    """Read as (D, H, W), the block's maps would have the size of the stem's."""
    (section,) = find_sections(Mixed(), (3, 16, 16))[:1]
    assert {section.entry.path, section.first.path, section.exit.path}.isdisjoint({"block", "act"})


@pytest.mark.parametrize(
    ("name", "tap", "size"),
    [
        ("torchvision:swin_t", "features.1", 64),
        ("timm:swin_tiny_patch4_window7_224", "layers.0", 224),
        ("timm:convnext_tiny", "stages.1.blocks.0.mlp", 64),
        ("torchvision:convnext_tiny", "features.3.0.block.3", 64),
    ],
)
def test_layouts_of_known_networks(name, tap, size):
    with torch.device("meta"):
        net = fs.create(name, num_classes=10)
        with pytest.raises(ShapeError, match="channels as the last axis"):
            pairs_by_hand(net, net, (3, size, size), [((tap, tap), (tap, tap))])


def test_blocks_of_known_networks_are_read():
    for name, tap, channels in (("timm:convnext_atto", "stages.1", 80), ("torchvision:maxvit_t", "blocks.0", 64)):
        with torch.device("meta"):
            net = fs.create(name, num_classes=10)
        size = 224 if "maxvit" in name else 64
        assert pairs_by_hand(net, net, (3, size, size), [((tap, tap), (tap, tap))])[0].student.exit_shape[0] == channels
