"""Sparse recoding alone, around the optimiser of whole networks of several families."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import flowstill as fs
from oracles import clipping, representing
from support.representing_networks import vgg


def he(network):
    """Initialised so that without BatchNorm its maps keep their scale from layer to layer."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


NETWORKS = {
    "resnet": lambda: fs.create("resnet8", width=0.25),
    "vgg without BatchNorm": lambda: he(vgg((1, 16), (2, 24), (1, 32), bn=False)),
    "timm": lambda: timm.create_model("test_resnet", num_classes=10),
}
LR, MOMENTUM, DECAY, STRENGTH = 0.01, 0.9, 0.02, 0.5


def make_network(name, dtype):
    torch.manual_seed(0)
    return NETWORKS[name]().to(dtype).train()


def batch(step, dtype):
    """Noise; each image has its own colour and label."""
    generator = torch.Generator().manual_seed(step)
    colours, noise = (torch.randn(8, 3, size, size, generator=generator) for size in (1, 32))
    return (colours + 0.5 * noise).to(dtype), (torch.arange(8) + step) % 10


def flat(tensors):
    return [tensor.detach().flatten().tolist() for tensor in tensors]


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_equal_the_loops_on_every_parameter(name):
    """Recoded gradient, then decay and momentum; each tensor has its own moving threshold; float64."""
    network = make_network(name, torch.float64)
    parameters = list(network.parameters())
    sgd = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    optimizer = fs.SparseRecoding(sgd, strength=STRENGTH, lr=0.3, quantile=0.9)
    weights = flat(parameters)
    momenta, thresholds = [[0.0] * len(values) for values in weights], [0.0] * len(weights)
    for step in range(2):
        optimizer.zero_grad()
        images, labels = batch(step, torch.float64)
        F.cross_entropy(network(images), labels).backward()
        gradients = flat(parameter.grad for parameter in parameters)
        optimizer.step()
        for i, gradient in enumerate(gradients):
            coded, thresholds[i] = representing.recoded(gradient, thresholds[i], STRENGTH, 0.3, 0.9)
            weights[i], momenta[i] = clipping.sgd(weights[i], coded, momenta[i], LR, MOMENTUM, False, DECAY)
        assert optimizer.thresholds == pytest.approx(thresholds, rel=1e-9)
    for (path, parameter), expected in zip(network.named_parameters(), weights, strict=True):
        by_hand = torch.tensor(expected, dtype=torch.float64).view_as(parameter)
        torch.testing.assert_close(
            parameter.detach(), by_hand, rtol=1e-9, atol=1e-12, msg=lambda m, p=path: f"{p}: {m}"
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_the_loss_falls_on_a_fixed_batch(name):
    network, (images, labels) = make_network(name, torch.float32), batch(0, torch.float32)
    optimizer = fs.SparseRecoding(torch.optim.SGD(network.parameters(), lr=0.005, momentum=MOMENTUM))
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
