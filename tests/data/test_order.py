from collections import Counter

import pytest
import torch

from flowstill.data.order import Rows, batches, in_order, permutation, stratified
from flowstill.errors import DataError

ROWS = torch.tensor([3, 5, 8, 13, 21, 34, 55])


def taken(**options) -> list[tuple[int, int]]:
    return [
        pair for rows in batches(ROWS, **options) for pair in zip(rows.index.tolist(), rows.epoch.tolist(), strict=True)
    ]


def test_each_epoch_holds_every_image_once_though_batches_straddle_epochs():
    seen = taken(batch=4, start=0, steps=14, seed=1)  # 56 images: 8 epochs of 7
    assert [epoch for _, epoch in seen] == [position // 7 for position in range(56)]
    for epoch in range(8):
        assert sorted(image for image, e in seen if e == epoch) == ROWS.tolist()
    assert len({tuple(image for image, e in seen if e == epoch) for epoch in range(8)}) > 1


def test_a_batch_may_be_larger_than_the_stream():
    (rows,) = batches(ROWS, batch=30, start=0, steps=1, seed=0)
    assert max(Counter(rows.index.tolist()).values()) - min(Counter(rows.index.tolist()).values()) == 1
    assert rows.epoch.tolist() == [position // 7 for position in range(30)]


@pytest.mark.parametrize("start", [0, 1, 6, 7, 13])
def test_any_step_can_be_resumed(start):
    whole = taken(batch=3, start=0, steps=20, seed=5)
    assert taken(batch=3, start=start, steps=20 - start, seed=5) == whole[3 * start :]


def test_the_sequence_does_not_depend_on_the_batch():
    assert taken(batch=4, start=0, steps=6, seed=2) == taken(batch=6, start=0, steps=4, seed=2)


@pytest.mark.parametrize(("batch", "world"), [(4, 2), (5, 2), (7, 3), (3, 3)])
def test_processes_share_a_batch_in_order(batch, world):
    whole = list(batches(ROWS, batch=batch, start=2, steps=5, seed=0))
    shares = [
        list(batches(ROWS, batch=batch, start=2, steps=5, seed=0, rank=rank, world=world)) for rank in range(world)
    ]
    for step, rows in enumerate(whole):
        parts = [share[step] for share in shares]
        assert torch.cat([part.index for part in parts]).equal(rows.index)
        assert torch.cat([part.epoch for part in parts]).equal(rows.epoch)
        sizes = [len(part.index) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_fewer_images_than_processes_is_an_error():
    with pytest.raises(DataError, match="batch of 2 cannot be shared by 3 processes"):
        batches(ROWS, batch=2, start=0, steps=1, seed=0, rank=0, world=3)


def test_permutations_differ_by_seed_and_epoch_and_are_fair():
    assert permutation(0, 0, 1000).sort().values.equal(torch.arange(1000))
    assert not permutation(0, 0, 1000).equal(permutation(0, 1, 1000))
    assert not permutation(0, 0, 1000).equal(permutation(1, 0, 1000))
    firsts = Counter(int(permutation(7, epoch, 5)[0]) for epoch in range(2000))
    assert sum((count - 400) ** 2 / 400 for count in firsts.values()) < 20  # chi-square, 4 degrees: p = 0.0005
    orders = Counter(tuple(permutation(7, epoch, 3).tolist()) for epoch in range(1200))
    assert len(orders) == 6
    assert sum((count - 200) ** 2 / 200 for count in orders.values()) < 22  # 5 degrees: p = 0.0005


def test_test_images_come_once_and_in_order_whatever_the_number_of_processes():
    for world in (1, 2, 3, 9):
        parts = [list(in_order(ROWS, batch=2, rank=rank, world=world)) for rank in range(world)]
        assert all(isinstance(rows, Rows) and len(rows.index) <= 2 for part in parts for rows in part)
        assert [int(row) for part in parts for rows in part for row in rows.index] == ROWS.tolist()


def test_stratified_takes_equally_many_per_class_while_they_last():
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate([50, 3, 20, 40])])[torch.arange(113) * 50 % 113]
    for count in (4, 5, 11, 30, 60, 113):
        rows = stratified(labels, count, key=9)
        assert len(rows.unique()) == len(rows) == count
        assert rows.equal(rows.sort().values)
        got, have = labels[rows].bincount(minlength=4).tolist(), labels.bincount().tolist()
        level = max(got)
        # a class has less than the others only if it has no more to give
        assert all(g >= level - 1 or g == h for g, h in zip(got, have, strict=True)), (count, got)


def test_stratified_in_proportion_keeps_the_shares():
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate([500, 30, 200, 270])])
    got = labels[stratified(labels, 100, key=9, proportional=True)].bincount().tolist()
    assert all(abs(g - n / 10) <= 1 for g, n in zip(got, [500, 30, 200, 270], strict=True))


def test_stratified_is_nested_keyed_and_favours_no_class():
    labels = torch.arange(1000) % 10
    small, large = (set(stratified(labels, n, key=4).tolist()) for n in (33, 71))
    assert small < large
    assert set(stratified(labels, 33, key=5).tolist()) != small
    extra = Counter(int(labels[stratified(labels, 1, key=key)][0]) for key in range(500))
    assert sum((extra[c] - 50) ** 2 / 50 for c in range(10)) < 33  # 9 degrees: p = 0.0001
