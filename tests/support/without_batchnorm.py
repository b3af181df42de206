"""Networks for runs of several processes, each of which would normalise by its own part of a batch."""

from torch import nn

from flowstill.recipes.recipe import Net


def network(*convolutions, num_classes):
    """Rows of (channels in, channels out, stride), a ReLU behind each convolution."""
    layers = [nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.ReLU()) for i, o, stride in convolutions]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(convolutions[-1][1], num_classes))


def two(num_classes, in_channels):
    return network((in_channels, 8, 1), (8, 8, 1), (8, 16, 2), (16, 16, 1), num_classes=num_classes)


def three(num_classes, in_channels):
    return network((in_channels, 8, 1), (8, 8, 1), (8, 16, 2), (16, 16, 1), (16, 16, 2), num_classes=num_classes)


TWO_SECTIONS, THREE_SECTIONS = Net(f"{__file__}:two"), Net(f"{__file__}:three")
