"""Which images each batch holds: a function of the seed and the batch's number, so that any step can be resumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowstill.data.keyed import Purpose, below, bits, key_of
from flowstill.errors import DataError


@dataclass(frozen=True)
class Rows:
    """The images of a batch.

    Attributes:
        index: (B,) int64, rows of the training set.
        epoch: (B,) int64, number of complete passes over the images before each one.
        view: (B,) int64, which fixed view each image shows; None if every epoch draws a new one.
    """

    index: Tensor
    epoch: Tensor
    view: Tensor | None = None

    @property
    def turn(self) -> Tensor:
        """What each image's augmentation is drawn from, besides seed and index: its view, else its epoch."""
        return self.epoch if self.view is None else self.view


def permutation(seed: int, epoch: int, count: int) -> Tensor:
    """The order of ``count`` images in one epoch, (count,) int64.

    >>> permutation(0, 0, 5).tolist() == permutation(0, 0, 5).tolist() != permutation(0, 1, 5).tolist()
    True
    """
    random = bits(key_of(seed, Purpose.ORDER), torch.tensor(epoch), torch.arange(count))
    return torch.argsort(random, stable=True)


def batches(
    rows: Tensor, *, batch: int, start: int, steps: int, seed: int, rank: int = 0, world: int = 1
) -> Iterator[Rows]:
    """Batches ``start`` to ``start + steps - 1`` of an endless sequence of epochs over ``rows``, (N,) int64.

    Batch t takes positions [t * batch, (t + 1) * batch): it may straddle epochs, and every image comes equally often.
    Of ``world`` processes each gets its contiguous share of the batch, ``rank`` by ``rank``, equal to within one image.

    Raises:
        DataError: a process would get none.
    """
    if batch < world:
        raise DataError(f"A batch of {batch} cannot be shared by {world} processes. Use a batch of at least {world}.")
    return _batches(rows, batch, range(start, start + steps), seed, rank, world)


def _batches(rows: Tensor, batch: int, steps: range, seed: int, rank: int, world: int) -> Iterator[Rows]:
    count = len(rows)
    orders: dict[int, Tensor] = {}
    for step in steps:
        positions = torch.arange(step * batch, (step + 1) * batch).tensor_split(world)[rank]
        epochs = positions // count
        needed = range(int(epochs[0]), int(epochs[-1]) + 1)
        orders = {epoch: orders[epoch] if epoch in orders else permutation(seed, epoch, count) for epoch in needed}
        pieces = [orders[epoch][positions[epochs == epoch] - epoch * count] for epoch in needed]
        yield Rows(rows[torch.cat(pieces)], epochs)


def with_views(plan: Iterable[Rows], views: int, seed: int) -> Iterator[Rows]:
    """The batches of ``plan``, each image with one of its ``views``, uniform and drawn from (seed, epoch, index)."""
    key = key_of(seed, Purpose.VIEW)
    for rows in plan:
        yield replace(rows, view=below(bits(key, rows.epoch, rows.index), views))


def in_order(rows: Tensor, *, batch: int, rank: int = 0, world: int = 1) -> Iterator[Rows]:
    """All of ``rows`` once, in batches; of ``world`` processes each gets its contiguous share of them, perhaps none."""
    for index in torch.split(rows.tensor_split(world)[rank], batch):
        if len(index):
            yield Rows(index, torch.zeros_like(index))


def stratified(labels: Tensor, count: int, *, key: int, proportional: bool = False) -> Tensor:
    """``count`` rows of ``labels``, (N,) int64, ascending, with classes as equal in number as possible.

    Args:
        proportional: take the same share of each class instead. A smaller count takes a subset of a larger one's.

    >>> torch.tensor([0, 1] * 5)[stratified(torch.tensor([0, 1] * 5), 4, key=0)].bincount().tolist()
    [2, 2]
    """
    random = bits(key, torch.arange(len(labels)))
    by_class = torch.argsort(random, stable=True)
    by_class = by_class[torch.argsort(labels[by_class], stable=True)]
    sizes = labels.bincount()
    first = sizes.cumsum(0) - sizes
    grouped = labels[by_class]
    place = (torch.arange(len(labels)) - first[grouped]).double()  # number within its class
    if proportional:
        place = (place + 0.5) / sizes[grouped]
    # Ties are broken in a random order of classes, so that no class is always the first to get one more.
    tie = bits(key, torch.tensor(-2), torch.arange(len(sizes)))[grouped]
    order = torch.argsort(tie, stable=True)
    order = order[torch.argsort(place[order], stable=True)]
    return by_class[order[:count]].sort().values
