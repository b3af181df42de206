"""Knowledge representing, the aggregation: several neighbouring teacher layers become one, which a student layer
follows.

Liu, Wen, Gao, Tao, Chen, Osa, Kato: "Knowledge Representing: Efficient, Sparse Representation of Prior Knowledge for
Knowledge Distillation", CVPR Workshops 2019. A deep teacher has too many layers for a shallow student to follow one by
one. Each group of c neighbours is therefore replaced by one layer W~, which learns what the whole group does to a map
(Eq. 9); the student's features then follow those of W~ (Eq. 10), layer by layer.

No code was published, and the paper leaves much open. This is a reconstruction:

* **Groups.** The paper aggregates "each three layer of teacher network" (c = 3, on ImageNet 4). A section's
  convolutions are taken in groups of c; no group crosses into the next section. If that gives more groups than the
  student has layers there (8 convolutions make 3 groups, ResNet-8 has 2), neighbouring groups are merged until it does
  not.
* **W~** is, for each group, a 3x3 convolution, BatchNorm and ReLU on the group's own input in the teacher, with the
  group's stride and the width of the student's layer that will follow it. Where that differs from the teacher's width,
  the paper's "identity mapping layer", a 1x1 convolution initialised as the identity, maps its features to the
  teacher's width for Eq. 9. It trains with W~ and on its loss alone; on the student's side it could shrink what it
  compares.
* **The cost** is printed as an L2 norm, not squared: here of each image's whole map, mean over the batch.
* **mu** is "the standard deviation" as "a measures function", written as a function of W: that of the group's weights.
  It is divided by its mean over the groups, so that gamma keeps one meaning. The text, which wants "to penalize more on
  the layer with higher accumulation error", would also allow that of the residual (``measure="residual"``).
* **The student's loss** between W~ and W^s is written for parameters, which cannot be compared where the widths of the
  layers before differ. It is taken between features: the mean squared error, summed over the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from flowstill.data.batch import Batch
from flowstill.errors import RecipeError
from flowstill.features.modules import module_at
from flowstill.features.pairs import Pairs
from flowstill.features.taps import Reading
from flowstill.knowledge.aggregate import Aggregate
from flowstill.knowledge.groups import find_groups
from flowstill.knowledge.maps import maps_at, precise, same_size
from flowstill.schema import specification
from flowstill.transfer.knowledge import Knowledge, Loss, Setting, register

Measure = Literal["weights", "residual"]


def transport_cost(teacher: Tensor, aggregated: Tensor, squared: bool = False) -> Tensor:
    """Cost of bringing W~'s features to the teacher's, Eq. 9: ||F_{W_L} - F_{W~}||_2, mean over the images.

    Args:
        teacher: (B, C, H, W).
        aggregated: (B, C, H, W).
        squared: take the squared norm.

    Returns:
        A scalar, float32 or better; its gradient at 0 is 0.

    >>> transport_cost(torch.ones(5, 1, 2, 2), torch.zeros(5, 1, 2, 2))
    tensor(2.)
    """
    residual = precise(teacher) - precise(aggregated)
    norms: Tensor = torch.linalg.vector_norm(residual.flatten(1), dim=1)
    return (norms.square() if squared else norms).mean()


def measures(spreads: Tensor) -> Tensor:
    """The mu of Eq. 9: standard deviations (groups,), divided by their mean; zeros if all are zero.

    >>> measures(torch.tensor([1.0, 3.0]))
    tensor([0.5000, 1.5000])
    """
    mean = spreads.mean()
    return torch.where(mean > 0, spreads / mean, 0.0)


def matching_loss(student: Sequence[Tensor], aggregated: Sequence[Tensor]) -> Tensor:
    """The pound(W~, W^s) of Eq. 10: mean squared error between features, summed over the layers.

    The larger map of a pair is average-pooled to the smaller one's size.

    Args:
        student: a map (B, C, H, W) for each layer.
        aggregated: the features of W~, (B, C, h, w) for each layer.

    >>> matching_loss([torch.ones(2, 1, 4, 4), torch.ones(2, 3, 2, 2)], [torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 2, 2)])
    tensor(2.)
    """
    errors = []
    for one, other in zip(student, aggregated, strict=True):
        one, other = same_size(precise(one), precise(other))
        errors.append((one - other).square().mean())
    return torch.stack(errors).sum()


class AggregationLoss(Loss):
    """Psi of Eq. 9 over all groups; the student is not read. W~ has the role ``aggregate``.

    Args:
        aggregate: W~.
        spreads: (groups,), the standard deviation of each group's weights.
        measure: what mu measures.
        squared: the cost is the squared norm.
    """

    storable = True

    def __init__(self, aggregate: Aggregate, spreads: Tensor, measure: Measure, squared: bool) -> None:
        super().__init__()
        self.aggregate, self.measure, self.squared = aggregate, measure, squared
        ends = [feature for group in aggregate.groups for feature in (group.teacher.before, group.teacher.after)]
        self.teacher_taps = tuple(dict.fromkeys(end.tap for end in ends))
        self.register_buffer("mu", measures(spreads), persistent=False)  # computed from the teacher, so not saved

    def parts(self) -> dict[str, nn.Module]:
        """W~ with its identity mapping layers."""
        return {"aggregate": self.aggregate}

    def target(self, teacher: Reading | None, batch: Batch | None = None) -> tuple[Tensor, ...]:
        """The teacher's maps before and after the groups, each once."""
        return maps_at(self.teacher_taps, self.require_teacher(teacher))

    def forward(self, student: Reading, target: Sequence[Tensor]) -> Tensor:
        """sum_j mu_j ||F_{W_L, j} - F_{W~, j}||_2, a float32 scalar: mean over the batch."""
        maps, groups = dict(zip(self.teacher_taps, target, strict=True)), self.aggregate.groups
        features = self.aggregate.mapped(self.aggregate([maps[group.teacher.before.tap] for group in groups]))
        pairs = [same_size(maps[group.teacher.after.tap], f) for group, f in zip(groups, features, strict=True)]
        costs = torch.stack([transport_cost(end, features, self.squared) for end, features in pairs])
        return (self._measures(pairs).to(costs.dtype) * costs).sum()

    def _measures(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        if self.measure == "weights":
            return self.get_buffer("mu")
        with torch.no_grad():
            return measures(torch.stack([(precise(a) - precise(b)).std(correction=0) for a, b in pairs]))


class MatchingLoss(Loss):
    """The student's features against those of W~, which this loss does not train."""

    def __init__(self, aggregate: Aggregate) -> None:
        super().__init__()
        self._aggregate = (aggregate,)  # a tuple, so that it is registered and trained only by the other loss
        self.teacher_taps = tuple(dict.fromkeys(group.teacher.before.tap for group in aggregate.groups))
        self.student_taps = tuple(dict.fromkeys(group.student.after.tap for group in aggregate.groups))

    @torch.no_grad()
    def target(self, teacher: Reading | None, batch: Batch | None = None) -> tuple[Tensor, ...]:
        """F_{W~} of each group for this batch, by the current W~; its statistics do not change."""
        teacher = self.require_teacher(teacher)
        (aggregate,) = self._aggregate
        return tuple(aggregate([teacher[group.teacher.before.tap] for group in aggregate.groups], observe=False))

    def forward(self, student: Reading, target: Sequence[Tensor]) -> Tensor:
        """A float32 scalar, at least 0: mean over the batch."""
        (aggregate,) = self._aggregate
        return matching_loss([student[group.student.after.tap] for group in aggregate.groups], target)


@register
@specification
class Aggregation(Knowledge):
    """Groups of the teacher's layers, each represented by one layer W~ that trains with this loss (Eq. 9).

    The term's weight is the paper's gamma. The loss reaches W~ alone: list the role ``aggregate`` among the player's
    modules. The student learns from W~ through ``aggregated``, in a later update; ``alternating`` sets up both.

    Attributes:
        layers: the largest number of neighbouring convolutions in a group, the paper's c; groups grow beyond it only
            where the student has too few layers. The paper uses 3, and 4 on ImageNet.
        measure: what the mu of Eq. 9 measures: the standard deviation of the group's ``weights``, or of its
            ``residual`` in the batch. Both are divided by their mean over the groups.
        squared: use the squared L2 norm as the cost, not the norm.
        std: standard deviation of the initial weights of W~. None initialises them as a CIFAR ResNet's layers, so about
            like the student's: the paper finds it "harder to converge, if the initialization on W~ is very different
            from W^s".
    """

    summary: ClassVar[str] = "what groups of layers do, learnt by one layer each for the student to follow; any widths"
    paper: ClassVar[str] = "Liu et al. 2019, Knowledge Representing"
    left_open: ClassVar[str] = "how knowledge is aggregated, and the weights of its losses"

    name: Literal["aggregation"] = "aggregation"
    layers: Annotated[int, Field(ge=1)] = 3
    measure: Measure = "weights"
    squared: bool = False
    std: Annotated[float, Field(gt=0)] | None = None

    def build(self, pairs: Pairs, setting: Setting | None = None) -> AggregationLoss:
        """The loss with its W~, which goes into ``setting.shared`` as ``aggregate``.

        Raises:
            ShapeError: there are no pairs.
            RecipeError: the setting has no teacher, or another term of the stage has other ``layers`` or ``std``.
            NetworkError: a section has no convolutions that can be found.
        """
        self.require_pairs(pairs)
        setting, teacher = self.require_teacher(setting)
        if "aggregate" not in setting.shared:
            setting.shared["aggregate"] = Aggregate(find_groups(pairs, setting, self.layers), self.layers, self.std)
        aggregate = setting.shared["aggregate"]
        assert isinstance(aggregate, Aggregate)
        for option, first, value in (("layers", aggregate.size, self.layers), ("std", aggregate.std, self.std)):
            if first != value:
                raise RecipeError(
                    f"aggregation: a stage has one aggregate, but '{option}: {first}' in one term and {value} in "
                    "another; give both the same."
                )
        spreads = [_spread(teacher, group.teacher.paths) for group in aggregate.groups]
        return AggregationLoss(aggregate, torch.stack(spreads), self.measure, self.squared)


@register
@specification
class Aggregated(Knowledge):
    """The student's features follow those of W~, layer by layer: pound(W~, W^s), the first term of Eq. 10.

    W~ belongs to the stage's ``aggregation``, in an earlier update.
    """

    summary: ClassVar[str] = "the features of W~, the layers that 'aggregation' trains; any widths"
    paper: ClassVar[str] = "Liu et al. 2019, Knowledge Representing"
    left_open: ClassVar[str] = "how knowledge is aggregated, and the weights of its losses"

    name: Literal["aggregated"] = "aggregated"

    def build(self, pairs: Pairs, setting: Setting | None = None) -> MatchingLoss:
        """The loss against the stage's W~.

        Raises:
            ShapeError: there are no pairs.
            RecipeError: the setting has no teacher, or no ``aggregation`` comes before.
        """
        self.require_pairs(pairs)
        setting, _ = self.require_teacher(setting)
        aggregate = setting.shared.get("aggregate")
        if not isinstance(aggregate, Aggregate):
            raise RecipeError(
                "aggregated needs the layers that 'aggregation' trains; add a term 'aggregation' to an earlier update of "
                "the same stage."
            )
        return MatchingLoss(aggregate)


def _spread(teacher: nn.Module, paths: Sequence[str]) -> Tensor:
    """The standard deviation of all weights of these convolutions together."""
    weights = [module_at(teacher, path).get_parameter("weight").detach().flatten() for path in paths]
    return torch.cat(weights).std(correction=0)
