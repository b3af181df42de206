"""Networks and readings for the tests of knowledge representing."""

import torch
from torch import nn

from flowstill.knowledge.base import Setting
from flowstill.sections import pair_sections
from flowstill.taps import Tapped


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vgg(*rows):
    """Rows of (convolutions, channels), a pooling between two rows: conv, BatchNorm, ReLU in place."""
    layers, channels = [], 3
    for number, (count, width) in enumerate(rows):
        layers += [nn.MaxPool2d(2)] if number else []
        for _ in range(count):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def calibrated(network, shape, seed=0):
    """With BatchNorm statistics and scales that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.3, 0.3), (module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 2.0)):  # fmt: skip
                tensor.data.uniform_(low, high, generator=generator)
    return network.eval()


def pairing(teacher, student, shape):
    return pair_sections(teacher, student, shape), Setting(teacher, student, shape, 10)


def read(network, loss_taps, images):
    with torch.no_grad():
        return Tapped(network, loss_taps, until="taps")(images)
