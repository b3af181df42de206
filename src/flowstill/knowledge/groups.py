"""Neighbouring teacher layers in groups, each with the student layer that will follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowstill.features.layers import Layer, find_layers
from flowstill.features.pairs import Pairs
from flowstill.transfer.knowledge import Setting


@dataclass(frozen=True)
class Group:
    """Neighbouring layers of the teacher, and the student layer that follows what represents them.

    Attributes:
        teacher: the neighbouring layers, as one.
        student: the student's layer.
    """

    teacher: Layer
    student: Layer


def group_sizes(layers: int, size: int, at_most: int) -> list[int]:
    """How many neighbouring layers go into each group: ``size``, and the remainder in the last.

    While there are more than ``at_most`` groups, the two neighbours that are smallest together are merged; of several
    such, the first.

    >>> group_sizes(8, 3, 2), group_sizes(10, 3, 4), group_sizes(8, 4, 2)
    ([3, 5], [3, 3, 3, 1], [4, 4])
    """
    sizes = [min(size, layers - start) for start in range(0, layers, size)]
    while len(sizes) > at_most:
        at = min(range(len(sizes) - 1), key=lambda i: sizes[i] + sizes[i + 1])
        sizes[at : at + 2] = [sizes[at] + sizes[at + 1]]
    return sizes


def group_layers(layers: Sequence[Layer], size: int, at_most: int) -> list[Layer]:
    """Neighbours merged as ``group_sizes`` says: from the map that enters the first to the map that leaves the last."""
    groups, start = [], 0
    for count in group_sizes(len(layers), size, at_most):
        members = layers[start : start + count]
        paths = tuple(path for layer in members for path in layer.paths)
        groups.append(Layer(paths, members[0].before, members[-1].after))
        start += count
    return groups


def find_groups(pairs: Pairs, setting: Setting, size: int) -> list[Group]:
    """The groups of all pairs of sections, none larger than ``size`` unless the student has too few layers.

    With G groups and m student layers in a section, group j (from 1) is followed by layer ceil(j m / G): one by one if
    there are equally many, and always the last by the last.

    Raises:
        NetworkError: a section has no convolution modules.
    """
    assert setting.teacher is not None  # checked by the knowledge that is built
    teacher = find_layers(setting.teacher, [pair.teacher for pair in pairs], setting.shown_to_teacher)
    student = find_layers(setting.student, [pair.student for pair in pairs], setting.shape)
    groups = []
    for layers_t, layers_s in zip(teacher, student, strict=True):
        merged = group_layers(layers_t, size, at_most=len(layers_s))
        for number, layer in enumerate(merged, start=1):
            follower = -(-number * len(layers_s) // len(merged))  # ceil(j m / G), counted from 1
            groups.append(Group(layer, layers_s[follower - 1]))
    return groups
