"""Shuffled teachers: the teacher's channels in another order, so that each student learns from a different twin.

Yim et al. (2017), section 4.1: networks that start from the same transfer differ too little to make an ensemble; with
the rows and columns of the FSP matrices shuffled they differ. Reordering a tap's channels reorders the columns of the
matrices that end there and the rows of those that start there. The paper does not say which orders were drawn.
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
    """G[b, i, j] -> G[b, rows[i], columns[j]]: the matrices of a teacher whose channels are in these orders.

    Args:
        matrices: (N, m, n).
        rows: (m,), a permutation.
        columns: (n,), a permutation.

    Returns:
        (N, m, n).

    >>> shuffled(torch.arange(4).view(1, 2, 2), torch.tensor([1, 0]), torch.tensor([0, 1]))
    tensor([[[2, 3],
             [0, 1]]])
    """
    return matrices[:, rows[:, None], columns]


def drawn_orders(
    shuffle: Shuffle | None, sections: Sequence[Section], flows: Sequence[Flow], seed: int
) -> tuple[Orders, ...]:
    """Orders of the rows and columns of each flow's matrix, a function of the seed; none without a shuffle.

    ``realisable``: orders of a network of the teacher's kind whose filters are in another order. Along the chain of all
    sections, each from entry to first block to exit, an order continues unchanged in the channels that a shortcut
    copies, which come first, and is drawn for the channels that are added: maps of equal width are ordered alike, and a
    narrower map gets a fresh order. That is exact where shortcuts are identities or pad with zeros, as in a CIFAR
    ResNet of type A. Where they are 1x1 convolutions, or there are none, any order is realisable, so this is stricter
    than necessary.

    ``independent``: one order per tap; a student with identity shortcuts cannot have such channels. ``per_matrix``:
    rows and columns are drawn for each matrix, so that no network fits them all.

    Args:
        shuffle: one of these, or None.
        sections: all paired sections of the teacher, in order, whether or not ``flows`` belong to them.
        flows: between the sections' taps.
        seed: of the job.

    Returns:
        (rows, columns) for each flow; () without a shuffle.
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
    """The number of channels at each tap of the chain, in the chain's order."""
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
