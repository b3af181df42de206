"""Networks and readings for the tests of knowledge representing."""

import torch
from torch import nn

from flowstill.features.pairs import pair_sections
from flowstill.features.taps import Tapped
from flowstill.transfer.knowledge import Setting
from oracles import representing as oracle


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vgg(*rows, bn=True):
    """Rows of (convolutions, channels), a pooling between two rows: conv, BatchNorm unless not ``bn``, ReLU in place."""
    layers, channels = [], 3
    for number, (count, width) in enumerate(rows):
        layers += [nn.MaxPool2d(2)] if number else []
        for _ in range(count):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=not bn),
                *([nn.BatchNorm2d(width)] if bn else []),
                nn.ReLU(inplace=True),
            ]
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def calibrated(network, shape, seed=0):
    """With BatchNorm statistics and scales that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return network.eval()


def pairing(teacher, student, shape):
    return pair_sections(teacher, student, shape), Setting(teacher, student, shape, 10)


def read(network, loss_taps, images):
    with torch.no_grad():
        return Tapped(network, loss_taps, until="taps")(images)


def psi_by_loops(teacher, loss, reading, squared=False, measure="weights"):
    """Psi and the features of every W~, in eval mode: convolution with the group's stride, BatchNorm, ReLU, identity
    mapping; then mu and the norms. ``reading`` is the teacher's."""
    spreads, costs, features = [], [], []
    for group, layer in zip(loss.aggregate.groups, loss.aggregate.layers, strict=True):
        before, after = reading[group.teacher.before.tap], reading[group.teacher.after.tap].tolist()
        stride = before.shape[2] // len(after[0][0])
        bn = [t.tolist() for t in (layer.bn.running_mean, layer.bn.running_var, layer.bn.weight, layer.bn.bias)]
        weight = layer.conv.weight.tolist()
        own = [
            oracle.rectified(oracle.normalised(oracle.convolution(maps, weight, stride, 1), *bn))
            for maps in before.tolist()
        ]
        features.append(own)
        mapped = own
        if not isinstance(layer.identity, nn.Identity):
            mapped = [oracle.convolution(maps, layer.identity.weight.tolist(), 1, 0) for maps in own]
        costs.append(oracle.cost(after, mapped, squared))
        if measure == "residual":
            pairs = [(oracle.flat(a), oracle.flat(b)) for a, b in zip(after, mapped, strict=True)]
            spreads.append(oracle.deviation([x - y for pair in pairs for x, y in zip(*pair, strict=True)]))
        else:
            rows = [teacher.get_submodule(path).weight.flatten().tolist() for path in group.teacher.paths]
            spreads.append(oracle.deviation([w for row in rows for w in row]))
    return oracle.psi(spreads, costs), features
