"""The papers' networks without data, and the sizes of their images."""

import torch

from flowstill.nets import create

CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)


def on_meta(name, classes=100, **options):
    with torch.device("meta"):
        return create(name, classes, **options)


def modules(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]
