"""Views: the ways an image can be shown, their numbers, and a few of them fixed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowstill.data import Augment, Data
from flowstill.data.augment import changed, draw, view_numbers
from flowstill.data.opening import open_data
from flowstill.data.order import Rows, batches, with_views
from flowstill.engine.feed import Feed
from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.errors import RecipeError
from flowstill.transfer.procedures import joint


def numbers(augment: Augment, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """One image shown ``count`` times as in so many epochs: the views' numbers, and what is seen of it."""
    image = torch.randint(0, 256, (1, 3, 12, 13), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = Rows(torch.zeros(count, dtype=torch.int64), torch.arange(count))
    drawn = draw(augment, seed, rows.index, rows.epoch)
    seen = changed(image.expand(count, -1, -1, -1), drawn, torch.zeros(3), torch.ones(3))
    number = view_numbers(augment, rows, drawn)
    assert number is not None
    return number, seen


@pytest.mark.parametrize(
    ("augment", "count"),
    [
        (Augment(), 1),
        (Augment(flip=True), 2),
        (Augment(crop=1), 9),
        (Augment(crop=2), 25),
        (Augment(shift=2), 25),
        (Augment(crop=1, flip=True), 18),
        (Augment(shift=1, flip=True), 18),
        (Augment(crop=4), 81),
    ],
)
def test_equal_numbers_mean_equal_pixels_and_every_number_occurs(augment, count):
    assert augment.view_count == count
    number, seen = numbers(augment, 40 * count)
    assert sorted(set(number.tolist())) == list(range(count))
    same_number = number[:, None] == number
    flat = seen.flatten(1)
    same_pixels = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") == 0
    assert same_pixels.equal(same_number)


def test_crop_and_shift_together_have_a_number_for_each_pair():
    augment = Augment(crop=1, shift=1, flip=True)
    assert augment.view_count == 2 * 9 * 9
    number, seen = numbers(augment, 6000)
    assert sorted(set(number.tolist())) == list(range(162))
    for one in range(0, 162, 7):
        shown = seen[number == one]
        assert shown.eq(shown[:1]).all()
    drawn = draw(augment, 0, torch.zeros(6000, dtype=torch.int64), torch.arange(6000))
    changes = torch.cat([drawn.flip[:, None].long(), drawn.move.flatten(1)], 1)
    assert len(changes.unique(dim=0)) == len(torch.cat([changes, number[:, None]], 1).unique(dim=0)) == 162


@pytest.mark.parametrize("augment", [Augment(rotate=5), Augment(resized_crop=True), Augment(crop=1, rotate=5)])
def test_unbounded_augmentation_has_no_numbers(augment):
    assert augment.view_count is None
    rows = Rows(torch.arange(3), torch.zeros(3, dtype=torch.int64))
    assert view_numbers(augment, rows, draw(augment, 0, rows.index, rows.epoch)) is None


def test_views_of_an_image_that_is_never_changed_are_refused():
    with pytest.raises(RecipeError, match="'views: 3' needs an augmentation to draw from"):
        Augment(views=3)
    with pytest.raises(RecipeError, match="at least 1"):
        Augment(crop=1, views=0)


def test_which_view_an_epoch_shows_is_uniform_and_depends_on_seed_epoch_and_index():
    def drawn(seed: int, **share: int) -> torch.Tensor:
        plan = batches(torch.arange(500), batch=100, start=0, steps=40, seed=5, **share)
        return torch.cat([rows.view for rows in with_views(plan, 4, seed) if rows.view is not None])

    views = drawn(seed=1)
    counts = views.bincount()
    assert len(counts) == 4
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 22  # chi-square, 3 degrees: p = 0.00007
    assert not drawn(seed=2).equal(views)
    shares = [torch.split(drawn(seed=1, rank=rank, world=2), 50) for rank in (0, 1)]
    assert torch.cat([half for step in zip(*shares, strict=True) for half in step]).equal(views)


def shown(data, seed: int, steps: int = 40, **options) -> dict[tuple[int, int], set[bytes]]:
    """What each view of each labelled image looks like, over some epochs."""
    seen: dict[tuple[int, int], set[bytes]] = {}
    for batch in data.train_batches("labelled", batch=20, steps=steps, seed=seed, **options):
        assert batch.view is not None
        for index, view, image in zip(batch.index.tolist(), batch.view.tolist(), batch.images, strict=True):
            seen.setdefault((index, view), set()).add(image.numpy().tobytes())
    return seen


ENDLESS = Augment(crop=2, flip=True, shift=2, rotate=30)


@pytest.mark.parametrize("streamed", [False, True])
def test_each_image_has_exactly_its_few_views_the_same_in_every_stage(streamed):
    augment = replace(ENDLESS, views=3, resized_crop=streamed)
    spec = Data("digits", labels=20, augment=augment, size=16 if streamed else None, workers=0)
    data = open_data(spec, seed=7)
    one, other = shown(data, seed=1), shown(data, seed=2)
    assert len(one) == 20 * 3
    assert all(len(looks) == 1 for looks in one.values())
    assert other == one
    different = {index: set() for index, _ in one}
    for (index, _), looks in one.items():
        different[index] |= looks
    assert all(len(looks) == 3 for looks in different.values())
    assert shown(open_data(spec, seed=7), seed=1) == one
    assert (
        shown(open_data(replace(spec, augment=replace(augment, views=2)), seed=7), seed=1, steps=20).items()
        <= one.items()
    )


def test_the_fixed_views_depend_on_the_seed_of_the_data():
    spec = Data("digits", augment=replace(ENDLESS, views=3))
    first, second = (open_data(spec, seed=seed) for seed in (0, 1))
    (a,), (b,) = (list(data.train_batches("all", batch=50, steps=1, seed=3)) for data in (first, second))
    assert a.index.equal(b.index)
    assert a.view.equal(b.view)
    assert (a.images != b.images).flatten(1).any(1).float().mean() > 0.9


def test_without_fixed_views_every_epoch_draws_new_ones():
    """The pixels of a batch are those of ``draw`` by the stream's seed and the epoch."""
    data = open_data(Data("digits", augment=Augment(crop=1, flip=True)))
    plain = open_data(Data("digits"))
    mean, std = (255 * torch.tensor(values) for values in (data.mean, data.std))
    for batch, bare in zip(*(d.train_batches("all", batch=700, steps=3, seed=9) for d in (data, plain)), strict=True):
        pixels = (bare.images * std.view(-1, 1, 1) + mean.view(-1, 1, 1)).round().to(torch.uint8)
        drawn = draw(Augment(crop=1, flip=True), 9, batch.index, batch.epoch)
        assert batch.images.equal(changed(pixels, drawn, mean, std))
        assert bare.view.eq(0).all()


def test_a_feed_with_two_streams_keeps_the_views_of_both():
    data = open_data(Data("digits", batch=8, unlabelled=5, labels=20, augment=Augment(crop=1)))
    (both,), fabric = joint("fsp", steps=2, lr=0.1), make_fabric("cpu", 1, Precision())
    batch = Feed(fabric, data, both, seed=3)(0)
    assert batch.view.shape == batch.index.shape == (13,)
    endless = open_data(Data("digits", batch=8, unlabelled=5, labels=20, augment=Augment(rotate=5)))
    assert Feed(fabric, endless, both, seed=3)(0).view is None
