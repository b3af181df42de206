"""What made the maps at a section's taps, and pairs of maps of one kind."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import flowstill as fs
from flowstill.features.kinds import kind_of
from flowstill.features.pairs import align_sections, alike, pair_sections, unlike
from flowstill.features.sections import find_sections
from flowstill.features.taps import Tapped
from flowstill.recipes.notices import pair_with_notices

SHAPE = (3, 16, 16)


def ways(x):
    conv, norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4).eval()
    made = conv(x)
    return {
        "convolution": made,
        "normalisation": norm(made),
        "activation": F.relu(norm(made)),
        "sum": made + F.relu(made),
        "concatenation": torch.cat([made, F.relu(made)], 1),
        "linear layer": F.linear(F.relu(made).permute(0, 2, 3, 1), torch.rand(4, 4), torch.rand(4)).permute(0, 3, 1, 2),
    }


@pytest.mark.parametrize("kind", ["convolution", "normalisation", "activation", "sum", "concatenation", "linear layer"])
def test_the_kind_of_a_map(kind):
    made = ways(torch.rand(1, 4, 8, 8, requires_grad=True))[kind]
    assert kind_of(made.grad_fn) == kind
    for kept in (
        F.max_pool2d(made, 2),
        F.pad(made, (1, 1)),
        F.dropout2d(made, 0.0),
        made.flatten(2),
        made * torch.rand(1),
    ):
        assert kind_of(kept.grad_fn) == kind


def test_a_gate_keeps_the_kind_and_sums_of_activations_are_activated():
    maps = ways(torch.rand(1, 4, 8, 8, requires_grad=True))
    one, other = maps["normalisation"], F.silu(maps["convolution"])
    assert kind_of((one * torch.sigmoid(one.mean((2, 3), keepdim=True))).grad_fn) == "normalisation"
    assert kind_of((maps["activation"] + other).grad_fn) == "activation"
    assert kind_of(torch.cat([maps["activation"], other], 1).grad_fn) == "activation"


class Plain(nn.Module):
    """Three convolutions; the way that each is normalised and activated is given."""

    def __init__(self, finish):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(3, 8, 3, 1, 1),
            nn.Conv2d(8, 8, 3, 1, 1),
            nn.Conv2d(8, 16, 3, 2, 1),
        )
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(n) for n in (8, 8, 16))
        self.act1, self.act2, self.act3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.finish, self.fc = finish, nn.Linear(16, 10)

    def forward(self, x):
        for number in (1, 2, 3):
            x = self.finish(self, number, getattr(self, f"conv{number}")(x))
            x = torch.cat([x[:, :4], x[:, 4:]], 1)  # so that no module is given the activated map itself
        return self.fc(x.mean((2, 3)))


def modules(net, n, x):
    return getattr(net, f"act{n}")(getattr(net, f"bn{n}")(x))


def functions(net, n, x):
    return F.relu(getattr(net, f"bn{n}")(x))


def in_place(net, n, x):
    return getattr(net, f"bn{n}")(x).relu_()


def without(net, n, x):
    return getattr(net, f"bn{n}")(x)


def sections(finish):
    return find_sections(Plain(finish), SHAPE)


def test_an_exit_before_an_unreadable_activation_is_noted():
    assert [s.activated_later for s in sections(modules)] == [False, False]
    assert [s.kinds[2] for s in sections(modules)] == ["activation", "activation"]
    for finish, exits, kind in (
        (functions, ["bn2", "bn3"], "normalisation"),
        (in_place, ["conv2", "conv3"], "convolution"),
    ):
        found = sections(finish)
        assert [s.activated_later for s in found][-1]
        assert str(found[-1].exit) == exits[-1]
        assert found[-1].kinds[2] == kind
    assert not any(s.activated_later for s in sections(without))


def test_an_activation_at_the_start_of_a_block_belongs_to_that_block():
    with torch.device("meta"):
        found = find_sections(fs.create("timm:resnetv2_18", num_classes=10), (3, 64, 64))
    assert [s.activated_later for s in found] == [False] * 4
    assert [s.kinds[2] for s in found] == ["sum", "sum", "sum", "activation"]


@pytest.mark.parametrize(("finish", "tap"), [(functions, "bn3"), (in_place, "conv3")])
def test_maps_of_one_kind_are_paired(finish, tap):
    """The teacher has every tap, the student only one before its ReLU: the teacher is read there too."""
    networks = Plain(modules), Plain(finish)
    for teacher, student in (networks, networks[::-1]):
        pair = pair_sections(teacher, student, SHAPE)[-1]
        assert (str(pair.teacher.exit), str(pair.student.exit)) == (tap, tap)
        assert unlike(pair_sections(teacher, student, SHAPE)) == []
        reading = Tapped(teacher, [pair.teacher.exit])(torch.rand(2, *SHAPE))
        assert (reading[pair.teacher.exit] < 0).any()


def test_networks_of_one_kind_keep_their_taps():
    networks = [fs.create(name) for name in ("resnet14", "resnet8")]
    found = [find_sections(network, SHAPE) for network in networks]
    assert alike(align_sections(*found)) == align_sections(*found)


class Reused(nn.Module):
    """One ReLU for all, as in torchvision: what goes into it cannot be tapped."""

    def __init__(self, last):
        super().__init__()
        self.conv1, self.block, self.last, self.fc = (
            nn.Conv2d(3, 8, 3, 1, 1),
            Block(last),
            nn.Identity(),
            nn.Linear(8, 10),
        )
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.fc(self.block(self.relu(self.conv1(x))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.conv1, self.conv2, self.last = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1), last

    def forward(self, x):
        x = x + self.conv2(F.relu(self.conv1(x)))
        return F.relu(x) if self.last else x


def test_pairs_of_different_kinds_are_warned_about_before_training(caplog):
    caplog.set_level(logging.WARNING, logger="flowstill")
    pair_with_notices(Reused(True), Reused(True), (1, *SHAPE))
    assert caplog.messages == []
    pair_with_notices(Reused(True), Reused(False), (1, *SHAPE))
    (said,) = caplog.messages
    assert "after an activation in the teacher, after a sum without activation in the student: block and block" in said
    assert "'flows: [{teacher: [FRONT, BACK], student: [FRONT, BACK]}]'" in said
