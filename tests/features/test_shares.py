"""How many parameters each section has, and how many are in none."""

import logging

import pytest
import torch
from torch import nn

import flowstill as fs
from flowstill.features.sections import find_sections
from flowstill.features.shares import Shares, find_shares
from flowstill.recipes.notices import pair_with_notices

SHAPE = (1, 3, 16, 16)


def conv(before, after, stride=1):
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def size(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


class Net(nn.Module):
    """A stem, two sections, blocks of tokens, a classifier of two layers, and a head that only training uses."""

    def __init__(self, width=8):
        super().__init__()
        self.stem, self.pool = conv(3, 8), nn.MaxPool2d(2)
        self.one, self.two = conv(8, 8), conv(8, 16, 2)
        self.embed, self.tokens = nn.Linear(16, width), nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.classifier = nn.Sequential(nn.Linear(width, 12), nn.ReLU(), nn.Linear(12, 10))
        self.beside = nn.Linear(16, 5)

    def forward(self, x):
        x = self.two(self.one(self.pool(self.stem(x))))
        if self.training:
            self.beside(x.mean((2, 3)))
        x = self.embed(x.flatten(2).transpose(1, 2))
        return self.classifier((x + self.tokens(x)).mean(1))


def shares(net, shape=SHAPE):
    return find_shares(net, find_sections(net, shape), shape)


@pytest.mark.parametrize("frozen", [False, True])
def test_every_parameter_is_counted_where_it_is(frozen):
    net = Net().requires_grad_(not frozen)
    net.one[1].weight.requires_grad_(False)
    flags = [p.requires_grad for p in net.parameters()]
    found = shares(net)
    assert found.sections == (size(net.one), size(net.two))
    assert found.before == size(net.stem)
    assert found.beyond == size(net.embed, net.tokens)
    assert found.head == size(net.classifier)
    assert found.unused == size(net.beside)
    assert found.between == 0
    assert found.body + found.head == size(net)
    assert [p.requires_grad for p in net.parameters()] == flags
    assert net.training
    assert all(p.grad is None for p in net.parameters())


def test_sections_left_out_count_as_between():
    net = fs.create("resnet8")
    sections = find_sections(net, (3, 32, 32))
    found = find_shares(net, [sections[0], sections[2]], (3, 32, 32))
    assert found.sections == (size(net.layer1), size(net.layer3))
    assert found.between == size(net.layer2)


def test_the_classifier_is_everything_after_one_vector_per_image():
    """A VGG's fully connected layers, and the 1x1 convolution after MobileNetV3's pooling."""
    net = fs.create("vgg-student")
    assert shares(net, (1, 3, 32, 32)).head == sum(size(m) for name, m in net.named_children() if name.startswith("fc"))
    with torch.device("meta"):
        net = fs.create("timm:mobilenetv3_small_050", num_classes=10)
    found = shares(net, (1, 3, 64, 64))
    assert found.head == size(net.conv_head, net.classifier)
    assert found.body + found.head == size(net)


@pytest.mark.parametrize(("outside", "said"), [(500, False), (501, True)])
def test_most_of_a_network_is_more_than_half_of_its_body(outside, said):
    assert bool(Shares((400, 1000 - 400 - outside), 0, 0, outside, 9999, 0).mostly_outside()) == said


def test_sections_that_hold_little_are_warned_about_before_training(caplog):
    caplog.set_level(logging.WARNING, logger="flowstill")
    pair_with_notices(Net(), Net(), SHAPE)
    assert caplog.messages == []
    pair_with_notices(Net(), Net(width=100), SHAPE)
    (said,) = caplog.messages
    wide = Net(width=100)
    body = size(wide) - size(wide.classifier)
    assert said.startswith("The student Net is paired in 2 sections, but ")
    assert f"{size(wide.embed, wide.tokens) / body:.0%} beyond the last section's exit" in said
    assert "'flows: [" in said
