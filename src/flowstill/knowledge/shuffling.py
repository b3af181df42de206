"""Shuffled teachers: the channels of the teacher's maps in another order, so that each student learns of another twin.

Yim et al. (2017), section 4.1: networks that start from one transfer differ too little to make an ensemble; with the
rows and columns of the FSP matrices shuffled they differ. To reorder channels i of a tap is to reorder the columns of
the matrices that end there and the rows of those that begin there. The paper does not say which orders were drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from flowstill.data.keyed import Purpose, bits, key_of
from flowstill.features.sections import Section
from flowstill.features.taps import Flow, Tap

Shuffle = Literal["realisable", "independent", "per_matrix"]
Orders = tuple[Tensor, Tensor]  # of a matrix's rows and columns: (m,) and (n,), int64


def shuffled(matrices: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """G[b, i, j] -> G[b, rows[i], columns[j]], the matrix of a teacher whose channels are in these orders.

    Args: matrices (N, m, n), rows (m,), columns (n,).

    >>> shuffled(torch.arange(4).view(1, 2, 2), torch.tensor([1, 0]), torch.tensor([0, 1]))
    tensor([[[2, 3],
             [0, 1]]])
    """
    return matrices[:, rows[:, None], columns]


def drawn_orders(
    shuffle: Shuffle | None, sections: Sequence[Section], flows: Sequence[Flow], seed: int
) -> tuple[Orders, ...]:
    """The orders of the rows and columns of each flow's matrix, the same whenever ``seed`` is; none without a shuffle.

    ``realisable``: those of a network of the same kind whose filters are in another order. Along the chain of all
    sections, each from entry to first block to exit, an order goes on as it was in the channels that a shortcut copies,
    which come first, and draws anew among those that are added: equal channels are ordered equally, and a narrower map
    quite anew. That is exact where shortcuts are identities or pad with zeros, so in a CIFAR ResNet of type A. Where
    they are 1x1 convolutions, or there are none, any order could be realised, and this is stricter than it need be.

    ``independent``: an order of its own for each tap; a student with identity shortcuts can not have such channels.
    ``per_matrix``: rows and columns drawn anew for each matrix, so that no network fits them all.

    Args:
        sections: all of the teacher's that are paired, in order, whichever of them ``flows`` belong to.
        flows: between the sections' taps.
    """
    key = key_of(seed, Purpose.SHUFFLE)
    channels = _channels(sections)
    place = {tap: number for number, tap in enumerate(channels)}
    if shuffle == "per_matrix":
        ends = [(place[flow.front], place[flow.back], flow) for flow in flows]
        return tuple(
            (
                _permutation(channels[flow.front], key, front, back, 0),
                _permutation(channels[flow.back], key, front, back, 1),
            )
            for front, back, flow in ends
        )
    if shuffle is None:
        return ()
    orders: dict[Tap, Tensor] = {}
    order = torch.arange(0)
    for tap, count in channels.items():
        kept = order if shuffle == "realisable" and len(order) <= count else order[:0]
        order = torch.cat([kept, len(kept) + _permutation(count - len(kept), key, place[tap])])
        orders[tap] = order
    return tuple((orders[flow.front], orders[flow.back]) for flow in flows)


def _channels(sections: Sequence[Section]) -> dict[Tap, int]:
    """How many channels each tap of the chain has, in the chain's order."""
    return {
        tap: shape[0]
        for section in sections
        for tap, shape in (
            (section.entry, section.entry_shape),
            (section.first, section.first_shape),
            (section.exit, section.exit_shape),
        )
    }


def _permutation(count: int, key: int, *counters: int) -> Tensor:
    """An order of ``count`` channels, (count,) int64."""
    return torch.argsort(bits(key, *map(torch.tensor, counters), torch.arange(count)), stable=True)
