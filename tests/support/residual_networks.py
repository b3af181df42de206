"""CIFAR ResNets with statistics of their own, and the same with their channels in another order."""

import copy
from itertools import pairwise

import torch
from torch import nn

from flowstill.nets import ResNet


def calibrated(depth, width=1, size=32, seed=0):
    """A random network in eval mode whose BatchNorm statistics are those of noise."""
    torch.manual_seed(seed)
    network = ResNet(depth, width=width)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    with torch.no_grad():
        network(torch.randn(32, 3, size, size))
    return network.eval().requires_grad_(False)


def permuted(network, orders):
    """The same function with the channels of X0 .. X3 reordered: X'_i = X_i[:, orders[i]]."""
    network = copy.deepcopy(network)

    def outputs(module, order):
        for tensor in module.state_dict().values():
            if tensor.ndim:
                tensor.copy_(tensor[order])

    def inputs(module, order):
        module.weight.copy_(module.weight[:, order])

    outputs(network.conv1, orders[0])
    outputs(network.bn1, orders[0])
    for layer, (before, after) in zip((network.layer1, network.layer2, network.layer3), pairwise(orders), strict=True):
        for i, block in enumerate(layer):
            inputs(block.conv1, after if i else before)
            outputs(block.conv2, after)
            outputs(block.bn2, after)
    inputs(network.fc, orders[-1])
    return network
