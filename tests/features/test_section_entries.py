"""Where a section starts: at the map that enters it, after the pooling."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flowstill.features.sections import find_sections
from flowstill.features.taps import Tapped
from support.section_networks import Net, Residual, conv, tail, taps


@pytest.mark.parametrize("deep", [False, True])
def test_the_first_section_starts_at_the_pooled_map(deep):
    """As in He et al. (2016): 7x7 convolution, 3x3 pooling by 2, then the blocks; deep stems are a section themselves."""
    stem = nn.Sequential(*conv(3, 8, stride=2), *(conv(8, 8) if deep else ()))
    net = Net(stem=stem, pool=nn.MaxPool2d(3, 2, 1), one=Residual(8), two=conv(8, 16, stride=2), tail=tail(16))
    *_, one, two = find_sections(net, (3, 32, 32))
    assert taps([one, two]) == [("pool", "one", "one"), ("one", "two", "two")]
    assert one.entry_shape == (8, 8, 8)
    images = torch.rand(2, 3, 32, 32)
    reading = Tapped(net.eval(), [one.entry, one.exit])(images)
    assert torch.equal(net.one(reading[one.entry]), reading[one.exit])


def test_functional_pooling_is_read_at_the_next_input():
    net = Net(
        {"act": lambda x: F.max_pool2d(x, 3, 2, 1)}, conv=conv(3, 8), act=nn.ReLU(), one=Residual(8), tail=tail(8)
    )
    assert taps(find_sections(net, (3, 16, 16))) == [("one:input", "one", "one")]


def test_linear_layers_after_the_pooling_are_not_the_entry():
    class Mix(nn.Linear):
        """A linear layer over each position's channels, as in a transformer."""

        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    net = Net(conv=conv(3, 8), pool=nn.MaxPool2d(2), mix=Mix(8, 8), one=Residual(8), tail=tail(8))
    assert [str(s.entry) for s in find_sections(net, (3, 16, 16))] == ["pool"]


def test_pooling_that_no_tap_can_read_leaves_the_entry_before_it():
    class Shared(nn.Module):
        """One pooling, called twice; its maps go into functions."""

        def __init__(self):
            super().__init__()
            self.pool, self.head = nn.MaxPool2d(2), nn.Linear(8, 10)
            self.a, self.b = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(8, 8, 3, 3))
            self.act1, self.act2 = nn.ReLU(), nn.ReLU()

        def forward(self, x):
            x = self.pool(self.act1(F.conv2d(x, self.a, padding=1)))
            x = self.pool(self.act2(F.conv2d(x, self.b, padding=1)))
            return self.head(x.mean((2, 3)))

    assert taps(find_sections(Shared(), (3, 16, 16))) == [("act1", "act2", "act2")]
