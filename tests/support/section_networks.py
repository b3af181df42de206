"""Small networks of named modules, to find sections in."""

from torch import nn


def conv(*channels, kernel=3, stride=1, padding=1, groups=1, act=nn.ReLU):
    return nn.Sequential(
        nn.Conv2d(*channels, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(channels[-1]), act()
    )


def head(channels):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


def tail(channels):
    return nn.Sequential(*head(channels))


class Net(nn.Module):
    """Modules by name, run in order; what they do besides is in ``between``: name -> function of its output."""

    def __init__(self, between=None, **modules):
        super().__init__()
        self.between = between or {}
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        for name, module in self.named_children():
            x = self.between.get(name, lambda x: x)(module(x))
        return x


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)  # called twice: never to be named

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


def taps(sections):
    return [(str(s.entry), str(s.first), str(s.exit)) for s in sections]
