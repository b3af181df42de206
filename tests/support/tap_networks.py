"""Small networks for the tests of taps, and helpers."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from flowstill.features.taps import Reading


class Count(nn.Module):
    """Passes its input on, scaled, and counts how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return 2 * x


class Steps(nn.Module):
    """Five convolutions, a shared activation, a module that is never called, and a head that gives ``wrap(logits)``."""

    def __init__(self, wrap=lambda logits: logits) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(5))
        self.act = nn.Tanh()
        self.unused = nn.Linear(3, 3)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
        self.wrap = wrap

    def forward(self, x: Tensor):
        for step in self.steps:
            x = self.act(step(x))
        return self.wrap(self.head(x))


def images(side: int = 8, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, side, side)


def counted() -> nn.Sequential:
    return nn.Sequential(OrderedDict((name, Count()) for name in "abcde"))


def calls(network: nn.Sequential) -> list[int]:
    return [module.calls for module in network]


def hook_count(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def assert_same(reading: Reading, expected: Reading) -> None:
    assert list(reading.maps) == list(expected.maps)
    for tap, found in expected.maps.items():
        torch.testing.assert_close(reading[tap], found)
    assert (reading.logits is None) == (expected.logits is None)
    if expected.logits is not None:
        torch.testing.assert_close(reading.logits, expected.logits)


def inplace_network() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(bn1=nn.BatchNorm2d(3), pool=nn.MaxPool2d(1), bn2=nn.BatchNorm2d(3), relu=nn.ReLU(inplace=True))
    )


def all_used() -> nn.Module:
    network = Steps()
    del network.unused
    return network
