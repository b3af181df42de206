"""The logits are found in whatever a network returns, or an error asks for them."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from flowstill.errors import NetworkError
from flowstill.features.outputs import settle_logits

SHAPE, CLASSES = (1, 8, 8), 10
Pair = namedtuple("Pair", "features logits")


@dataclass
class Output:
    features: Any
    logits: Any


class Returns(nn.Module):
    """Returns ``wrap(network, features, logits)``; the features are as many as the classes."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, CLASSES, 3, padding=1), nn.BatchNorm2d(CLASSES), nn.ReLU(), nn.Dropout(0.5)
        )
        self.fc, self.wrap = nn.Linear(CLASSES, CLASSES), wrap

    def forward(self, x):
        maps = self.body(x)
        return self.wrap(self, maps, self.fc(maps.mean((2, 3))))


def settled(wrap, **options):
    """The network with its logits settled, and its logits for some images in eval mode."""
    torch.manual_seed(0)
    network = Returns(wrap).eval()
    images = torch.rand(3, *SHAPE)
    with torch.no_grad():
        right = network.fc(network.body(images).mean((2, 3)))
    settle_logits(network, SHAPE, CLASSES, **options)
    return network, images, right


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net, maps, logits: logits,
        lambda net, maps, logits: (maps, logits),
        lambda net, maps, logits: [logits, maps],
        lambda net, maps, logits: (maps.mean((2, 3))[:, :4], [logits]),
        lambda net, maps, logits: {"hidden": (maps, maps.mean((2, 3))), "out": {"logits": logits}},
        lambda net, maps, logits: OrderedDict(pooled=maps.mean((2, 3)), logits=logits),
        lambda net, maps, logits: Pair(maps.mean((2, 3)), logits),
        lambda net, maps, logits: Output(maps.mean((2, 3)), logits),
        lambda net, maps, logits: SimpleNamespace(features=maps.mean((2, 3)), logits=logits),
        lambda net, maps, logits: (logits, logits),
        lambda net, maps, logits: logits[..., None, None],
        lambda net, maps, logits: (maps.mean((2, 3), keepdim=True), logits),
        lambda net, maps, logits: (logits, maps.mean((2, 3))) if net.training else logits,
        lambda net, maps, logits: (maps.mean((2, 3)), logits) if net.training else logits,
        lambda net, maps, logits: logits if net.training else (maps, logits),
    ],
)
def test_the_logits_are_found_in_both_modes(wrap):
    network, images, right = settled(wrap)
    with torch.no_grad():
        assert torch.equal(network(images), right)
        network.training = True  # the layers inside stay in eval mode, so the values are the same
        assert torch.equal(network(images), right)


def test_a_plain_network_is_left_alone():
    network, _, _ = settled(lambda net, maps, logits: logits)
    assert not network._forward_hooks


@pytest.mark.parametrize(
    ("wrap", "places", "last"),
    [
        (lambda net, maps, logits: (maps.mean((2, 3)), logits), r"output\[0\], output\[1\]", r"output\[1\]"),
        (
            lambda net, maps, logits: {"a": logits, "b": [2 * logits]},
            r"output\['a'\], output\['b'\]\[0\]",
            r"\['b'\]\[0\]",
        ),
    ],
)
def test_two_candidates_are_ambiguous(wrap, places, last):
    with pytest.raises(NetworkError, match=rf"Returns returns 2 tensors of shape \(images, 10\): {places}.*{last}"):
        settled(wrap)


def test_the_hook_suggested_by_the_error_resolves_it():
    network = Returns(lambda net, maps, logits: (maps.mean((2, 3)), logits)).eval()
    network.register_forward_hook(lambda module, images, output: output[1])
    settle_logits(network, SHAPE, CLASSES)
    images = torch.rand(3, *SHAPE)
    assert torch.equal(network(images), network.fc(network.body(images).mean((2, 3))))


def test_no_logits_in_training_mode():
    with pytest.raises(NetworkError, match="in eval mode, but none in training mode"):
        settled(lambda net, maps, logits: maps if net.training else logits)
    settled(lambda net, maps, logits: maps if net.training else logits, trains=False)


def test_other_classes_are_left_for_the_check_to_judge():
    network, images, _ = settled(lambda net, maps, logits: (maps, logits[:, :7]))
    assert isinstance(network(images), tuple)


def test_statistics_random_numbers_and_modes_are_unchanged():
    network = Returns(lambda net, maps, logits: (maps, logits)).train()
    before, random = network.state_dict(), torch.get_rng_state()
    before = {name: value.clone() for name, value in before.items()}
    settle_logits(network, SHAPE, CLASSES)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in network.modules())


def test_a_traced_network():
    network = torch.jit.trace(Returns(lambda net, maps, logits: (maps, logits)).eval(), torch.rand(2, *SHAPE))
    images = torch.rand(3, *SHAPE)
    right = network(images)[1]
    settle_logits(network, SHAPE, CLASSES, trains=False)
    assert torch.equal(network(images), right)
