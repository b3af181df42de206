"""W~ of knowledge representing: the layers that stand for groups of the teacher's and teach the student."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from flowstill.features.layers import Feature
from flowstill.knowledge.groups import Group


class AggregatedLayer(nn.Module):
    """One W~: a 3x3 convolution, BatchNorm and ReLU in place of a group of the teacher's layers.

    Without ReLU where the teacher's own map is not rectified, as after a linear bottleneck. ``identity`` is the identity
    mapping layer from the student's width to the teacher's.

    Args:
        before: the teacher's map that enters the group.
        after: the teacher's map that leaves it.
        channels: width of the student's layer that follows.
        std: standard deviation of the convolution's initial weights; None for a CIFAR ResNet's initialisation.
    """

    def __init__(self, before: Feature, after: Feature, channels: int, std: float | None = None) -> None:
        super().__init__()
        stride = [max(1, round(a / b)) for a, b in zip(before.shape[1:], after.shape[1:], strict=True)]
        self.conv = nn.Conv2d(before.shape[0], channels, 3, (stride[0], stride[1]), padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.Identity() if after.signed else nn.ReLU()
        same = channels == after.shape[0]
        self.identity = nn.Identity() if same else nn.Conv2d(channels, after.shape[0], 1, bias=False)
        # The paper: "harder to converge, if the initialization on W~ is very different from W^s".
        if std is None:
            nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.normal_(self.conv.weight, std=std)
        if isinstance(self.identity, nn.Conv2d):
            nn.init.dirac_(self.identity.weight)

    def forward(self, maps: Tensor, observe: bool = True) -> Tensor:
        """The teacher's map before the group, (B, C, H, W) -> F_{W~}, (B, student's channels, h, w).

        Args:
            maps: the teacher's.
            observe: whether BatchNorm, in training, updates its statistics; it normalises by the batch either way.
        """
        maps = self.conv(maps)
        if observe or not self.training:
            maps = self.bn(maps)
        else:
            maps = F.batch_norm(maps, None, None, self.bn.weight, self.bn.bias, training=True, eps=self.bn.eps)
        features: Tensor = self.relu(maps)
        return features


class Aggregate(nn.Module):
    """All W~ of a stage, one for each group."""

    def __init__(self, groups: Sequence[Group], size: int, std: float | None = None) -> None:
        super().__init__()
        self.groups, self.size, self.std = tuple(groups), size, std
        self.layers = nn.ModuleList(
            AggregatedLayer(g.teacher.before, g.teacher.after, g.student.after.shape[0], std) for g in self.groups
        )

    def forward(self, inputs: Sequence[Tensor], observe: bool = True) -> list[Tensor]:
        """The teacher's maps before each group -> F_{W~} of each."""
        return [layer(maps, observe) for layer, maps in zip(self.layers, inputs, strict=True)]

    def mapped(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of W~ at the teacher's width."""
        identities = [layer.get_submodule("identity") for layer in self.layers]
        return [identity(maps) for identity, maps in zip(identities, features, strict=True)]
