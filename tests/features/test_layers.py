"""A section's convolutions in order, and their groups, spec (e)."""

import pytest
import torch
from torch import nn

import flowstill as fs
from flowstill.features.layers import find_layers
from flowstill.features.pairs import pairs_by_hand
from flowstill.features.sections import find_sections
from flowstill.features.taps import Tapped
from flowstill.knowledge.aggregation import (
    Aggregation,
)
from flowstill.knowledge.groups import find_groups, group_sizes
from flowstill.transfer.knowledge import Setting
from oracles import representing as oracle
from support.representing_networks import calibrated, pairing, vgg


def counts(teacher, student, shape, size=3):
    """For each section: how many convolutions the groups hold, and which of the student's layers follow them."""
    with torch.device("meta"):
        pairs, setting = pairing(
            *(fs.create(net, num_classes=10) if isinstance(net, str) else net() for net in (teacher, student)), shape
        )
    groups = find_groups(pairs, setting, size)
    sections = find_layers(setting.student, [pair.student for pair in pairs], shape)
    return [
        (
            [len(g.teacher.paths) for g in groups if g.student in own],
            [own.index(g.student) for g in groups if g.student in own],
        )
        for own in sections
    ]


def test_resnet26_groups_merge_to_the_layers_of_resnet8():
    """8 convolutions in each of 3 sections: groups of 3, 3 and 2 are one too many for the two layers of a section."""
    assert counts("resnet26", "resnet8", (3, 32, 32)) == [([3, 5], [0, 1])] * 3
    assert counts("resnet26", "resnet8", (3, 32, 32), size=4) == [([4, 4], [0, 1])] * 3


def test_resnet32_has_as_many_groups_as_resnet14_has_layers():
    assert counts("resnet32", "resnet14", (3, 32, 32)) == [([3, 3, 3, 1], [0, 1, 2, 3])] * 3


def test_fewer_groups_than_layers_end_where_the_section_ends():
    assert counts("resnet14", "resnet20", (3, 32, 32), size=2) == [([2, 2], [2, 5])] * 3
    assert counts("resnet14", "resnet20", (3, 32, 32), size=4) == [([4], [5])] * 3


def test_vgg_like_and_timm_networks_have_groups():
    assert counts(lambda: vgg((2, 16), (4, 32), (7, 64)), lambda: vgg((2, 8), (2, 8), (3, 8)), (3, 32, 32)) == [
        ([1], [0]),
        ([3, 1], [0, 1]),
        ([3, 3, 1], [0, 1, 2]),
    ]
    # Bottlenecks, of three convolutions each.
    assert counts("timm:resnet26", "timm:resnet18", (3, 64, 64), size=4)[0] == ([4, 2], [1, 3])
    assert counts("timm:mobilenetv2_035", "timm:mobilenetv2_035", (3, 64, 64))[1] == ([3, 3], [2, 5])


@pytest.mark.parametrize("layers", range(1, 20))
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("at_most", [1, 2, 3, 5])
def test_group_sizes_equal_the_loops(layers, size, at_most):
    sizes = group_sizes(layers, size, at_most)
    assert sizes == [len(group) for group in oracle.groups(layers, size, at_most)]
    assert sum(sizes) == layers
    assert len(sizes) <= at_most


def paths(network, shape=(3, 64, 64), section=1):
    with torch.device("meta"):
        network = network() if callable(network) else fs.create(network, num_classes=10)
    sections = find_sections(network, shape)
    return [layer.paths[0] for layer in find_layers(network, sections, shape)[section]]


def test_layers_are_those_of_the_main_path_in_order():
    assert paths(lambda: fs.create("resnet14", shortcut="B"), (3, 32, 32)) == [
        f"layer2.{block}.conv{n}" for block in (0, 1) for n in (1, 2)
    ]
    gated = paths("timm:seresnet18")  # squeeze-and-excitation in each block, a projection beside the first
    assert gated == [f"layer2.{block}.conv{n}" for block in (0, 1) for n in (1, 2)]
    assert paths("timm:mobilenetv3_small_050", section=2)[:3] == [
        f"blocks.2.0.conv_{kind}" for kind in ("pw", "dw", "pwl")
    ]


def test_a_block_with_one_convolution_beside_a_projection():
    """Both ways pass one convolution; the main one has more weights."""

    class Block(nn.Module):
        def __init__(self, inside, outside, stride):
            super().__init__()
            self.project = nn.Conv2d(inside, outside, 1, stride)
            self.conv = nn.Conv2d(inside, outside, 3, stride, 1)
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(self.project(x) + self.conv(x))

    def make():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1),
            nn.ReLU(),
            Block(8, 8, 1),
            Block(8, 16, 2),
            Block(16, 16, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 10),
        )

    assert paths(make, (3, 16, 16)) == ["3.conv", "4.conv"]


def test_a_layers_output_is_read_after_its_activation():
    teacher = calibrated(fs.create("resnet14", width=0.25), (3, 16, 16))
    (section, *_) = find_sections(teacher, (3, 16, 16))
    layers = find_layers(teacher, [section], (3, 16, 16))[0]
    images = torch.randn(2, 3, 16, 16)
    taps = [layer.after.tap for layer in layers]
    reading = Tapped(teacher, [*taps, "layer1.0.relu1", "layer1.0", "layer1.1.relu1", "layer1.1"])(images)
    for tap, module in zip(taps, ["layer1.0.relu1", "layer1.0", "layer1.1.relu1", "layer1.1"], strict=True):
        assert torch.equal(reading[tap], reading[module])
    assert [layer.before.tap for layer in layers[1:]] == taps[:-1]


def test_finding_layers_leaves_the_network_unchanged():
    teacher = fs.create("resnet8", width=0.25).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    random = torch.get_rng_state()
    find_layers(teacher, find_sections(teacher, (3, 16, 16)), (3, 16, 16))
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert teacher.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_section_of_functions_is_refused():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 10)
            self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
            self.act, self.out = nn.ReLU(), nn.ReLU()

        def forward(self, x):
            x = self.out(nn.functional.conv2d(self.act(self.stem(x)), self.weight, padding=1))
            return self.fc(x.mean((2, 3)))

    network = Functional()
    pairs = pairs_by_hand(network, network, (3, 8, 8), [(("act", "out"), ("act", "out"))])
    with pytest.raises(fs.NetworkError, match=r"found no convolution on the path .* act -> out"):
        Aggregation().build(pairs, Setting(network, network, (3, 8, 8), 10))
