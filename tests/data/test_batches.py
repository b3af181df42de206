import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from flowstill.data import Augment, Batch, Data, ImageData, opening
from flowstill.data.decode import central, random_area
from flowstill.data.opening import open_data
from flowstill.errors import DataError

CHANGES = Augment(crop=1, flip=True, shift=1, rotate=10)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return open_data(Data("digits", labels=200, augment=CHANGES))


def together(batches) -> tuple[torch.Tensor, ...]:
    parts = [(b.images, b.labels, b.index, b.epoch) for b in batches]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def equal(first, second) -> bool:
    return all(a.equal(b) for a, b in zip(first, second, strict=True))


def test_batch_contents(digits):
    first, second = digits.train_batches("all", batch=32, start=5, steps=2)
    assert isinstance(first, Batch)
    assert (first.images.shape, first.images.dtype) == ((32, 1, 8, 8), torch.float32)
    assert all(t.shape == (32,) and t.dtype == torch.int64 for t in (first.labels, first.index, first.epoch))
    assert (first.step, second.step, first.steps) == (5, 6, 7)


@pytest.mark.parametrize("stream", ["labelled", "all"])
def test_batches_do_not_depend_on_start_batch_size_or_processes(digits, stream):
    whole = together(digits.train_batches(stream, batch=60, steps=30, seed=3))  # 1 800: beyond an epoch
    assert int(whole[3].max()) > 0
    assert equal(together(digits.train_batches(stream, batch=90, steps=20, seed=3)), whole)
    late = together(digits.train_batches(stream, batch=60, start=17, steps=13, seed=3))
    assert equal(late, [column[17 * 60 :] for column in whole])
    shares = [digits.train_batches(stream, batch=60, steps=30, seed=3, rank=rank, world=7) for rank in range(7)]
    assert equal(together(batch for step in zip(*shares, strict=True) for batch in step), whole)
    assert not equal(together(digits.train_batches(stream, batch=60, steps=30, seed=4)), whole)


def test_an_image_looks_different_in_each_epoch_and_for_each_seed(digits):
    seen = list(digits.train_batches("labelled", batch=200, steps=3)) + list(
        digits.train_batches("labelled", batch=200, steps=1, seed=1)
    )
    images = [batch.images[batch.index.argsort()] for batch in seen]
    for i in range(4):
        for j in range(i):
            same = (images[i] == images[j]).flatten(1).all(1)
            assert int(same.sum()) < 20  # 162 translations, 2 flips, and rotation


def test_the_global_generator_is_not_used(digits):
    before = torch.get_rng_state()
    list(digits.train_batches("all", batch=8, steps=2))
    list(digits.test_batches(batch=100))
    streamed = open_data(Data("digits", size=8, augment=Augment(resized_crop=True), workers=1))
    list(streamed.train_batches("all", batch=8, steps=2))
    assert torch.get_rng_state().equal(before)


def test_labels_outside_the_labelled_images_are_hidden(digits):
    _, labels, index, _ = together(digits.train_batches("all", batch=1297, steps=1))
    true = together(open_data(Data("digits")).train_batches("all", batch=1297, steps=1))
    assert index.equal(true[2])
    shown = labels >= 0
    assert int(shown.sum()) == digits.labelled_size == 200
    assert labels[shown].equal(true[1][shown])
    assert labels[shown].bincount().tolist() == [20] * 10
    assert labels[~shown].eq(-1).all()
    _, labels, index, _ = together(digits.train_batches("labelled", batch=200, steps=3))
    assert set(index.tolist()) == set(true[2][shown].tolist()) == set(digits.labelled_rows().tolist())
    assert labels.min() >= 0
    assert max(Counter(index.tolist()).values()) == min(Counter(index.tolist()).values()) == 3


def test_a_call_may_ask_for_another_number_of_labels(digits):
    _, labels, index, _ = together(digits.train_batches("labelled", batch=50, steps=4, labels=50))
    assert set(index.tolist()) == set(digits.labelled_rows(50).tolist()) < set(digits.labelled_rows().tolist())
    assert labels.bincount().tolist() == [20] * 10
    with pytest.raises(DataError, match="'labels' is 5"):
        digits.train_batches("labelled", batch=5, steps=1, labels=5)


def test_the_labelled_images_depend_on_the_seed_of_opening():
    first, again, other = (open_data(Data("digits", labels=50), seed=seed).labelled_rows() for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


def test_without_a_number_of_labels_both_streams_are_the_same():
    data = open_data(Data("digits", augment=CHANGES))
    streams = [together(data.train_batches(stream, batch=100, steps=3)) for stream in ("labelled", "all")]
    assert equal(*streams)
    assert data.labelled_size == 1297


def test_test_images_are_whole_in_order_and_shared(digits):
    whole = list(digits.test_batches(batch=64))
    assert [len(labels) for _, labels in whole] == [64] * 7 + [52]
    images, labels = (torch.cat(column) for column in zip(*whole, strict=True))
    shares = [pair for rank in range(3) for pair in digits.test_batches(batch=64, rank=rank, world=3)]
    assert torch.cat([x for x, _ in shares]).equal(images)
    assert torch.cat([y for _, y in shares]).equal(labels)


def test_held_out_images_are_tested_on_and_never_trained_on():
    whole = open_data(Data("digits"))
    data = open_data(Data("digits", hold_out=297, labels=100))
    assert (data.train_size, data.test_size) == (1000, 297)
    _, labels, index, _ = together(data.train_batches("all", batch=1000, steps=1))
    held = sorted(set(range(1297)) - set(index.tolist()))
    assert len(held) == 297
    _, true, rows, _ = together(whole.train_batches("all", batch=1297, steps=1))
    shown = torch.cat([y for _, y in data.test_batches(batch=100)])
    assert shown.equal(true[rows.argsort()][held])
    share = true.bincount() * 297 / 1297
    assert (shown.bincount() - share).abs().max() <= 1
    assert int((labels >= 0).sum()) == 100
    images = torch.cat([x for x, _ in data.test_batches(batch=100)])
    (plain,) = whole.train_batches("all", batch=1297, steps=1)
    original = plain.images[plain.index.argsort()][held]
    pixels = [x * torch.tensor(d.std) + torch.tensor(d.mean) for x, d in ((images, data), (original, whole))]
    torch.testing.assert_close(*pixels)
    assert data.mean != whole.mean  # of what is trained on


def test_the_fingerprint_depends_on_the_content_alone(tmp_path, monkeypatch):
    for place, changed in (("a", 0), ("b", 0), ("c", 1)):
        folder = tmp_path / place
        folder.mkdir()
        photographs(folder / "train.parquet", 12, size=(8, 8), first=changed)
        photographs(folder / "test.parquet", 4, size=(8, 8), first=50)
    for limit in (opening.IN_MEMORY, 0):
        monkeypatch.setattr(opening, "IN_MEMORY", limit)
        a, b, c, d = (
            open_data(Data(str(tmp_path / p), size=s, workers=0)).fingerprint
            for p, s in zip("abca", (None, None, None, 9), strict=True)
        )
        assert a == b
        assert len({a, c, d}) == 3


def photographs(file: Path, count: int, size: tuple[int, int] = (30, 20), first: int = 0) -> None:
    """Smooth random images, whose resized versions differ visibly."""
    rows = []
    for number in range(first, first + count):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"image": rows, "label": [n % 3 for n in range(count)]}), file)


@pytest.fixture
def large(tmp_path) -> Data:
    photographs(tmp_path / "train.parquet", 30)
    photographs(tmp_path / "test.parquet", 9, size=(20, 26), first=50)
    return Data(str(tmp_path), size=16, augment=Augment(crop=2, flip=True), workers=2)


def test_streamed_images_equal_images_in_memory(large, monkeypatch):
    held = open_data(large)
    monkeypatch.setattr(opening, "IN_MEMORY", 0)
    streamed = open_data(large)
    assert type(streamed._images) is not type(held._images)
    assert (streamed.mean, streamed.std) == (held.mean, held.std)
    batches = [together(data.train_batches("all", batch=8, steps=5, start=2)) for data in (held, streamed)]
    assert equal(*batches)
    for (x, y), (u, v) in zip(held.test_batches(batch=4), streamed.test_batches(batch=4), strict=True):
        assert x.equal(u)
        assert y.equal(v)


def test_random_areas_are_the_same_whatever_the_workers_and_the_start(large):
    spec = replace(large, augment=Augment(resized_crop=True, flip=True))
    whole = together(open_data(replace(spec, workers=0)).train_batches("all", batch=12, steps=6, seed=2))
    data = open_data(spec)
    assert equal(together(data.train_batches("all", batch=8, steps=9, seed=2)), whole)
    assert equal(together(data.train_batches("all", batch=8, steps=7, start=2, seed=2)), [c[16:] for c in whole])
    once, twice = (whole[0][(whole[2] == 7) & (whole[3] == epoch)] for epoch in (0, 1))
    assert len(once) == len(twice) == 1
    assert not once.equal(twice)


def test_the_test_crop_is_the_middle_of_the_image(large):
    data = open_data(replace(large, augment=Augment(resized_crop=True), test_crop=0.875, workers=0))
    images, _ = next(data.test_batches(batch=1))
    coarse = np.random.default_rng(50).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((20, 26), Image.Resampling.BICUBIC)
    # shorter side to 16 * 8 / 7, then the centre: a square of 17.5 pixels
    shown = picture.resize((16, 16), Image.Resampling.BILINEAR, box=(1.25, 4.25, 18.75, 21.75))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    expected = (torch.from_numpy(np.array(shown)).permute(2, 0, 1) / 255 - mean) / std
    torch.testing.assert_close(images[0], expected, rtol=1e-4, atol=1e-5)


def test_random_areas_cover_what_they_should():
    boxes = [random_area(300, 300, seed=0, index=index, epoch=1) for index in range(1500)]
    shares, ratios = [], []
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 300
        assert 0 <= top < bottom <= 300
        shares.append((right - left) * (bottom - top) / 90_000)
        ratios.append((right - left) / (bottom - top))
    assert 0.075 < min(shares) < 0.1
    assert 0.85 < max(shares) <= 1
    assert all(0.74 < ratio < 1.36 for ratio in ratios)
    assert abs(np.mean(np.log(ratios))) < 0.03
    lefts = [left / (300 - (right - left)) for left, _, right, _ in boxes if right - left < 200]
    assert abs(np.mean(lefts) - 0.5) < 0.05
    assert random_area(300, 300, 0, 7, 1) == boxes[7] != random_area(300, 300, 0, 7, 2)
    assert random_area(1000, 10, 0, 0, 0) == central(1000, 10)  # nothing of such a ratio fits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gets_the_same_batches(digits):
    there = list(digits.train_batches("all", batch=64, steps=25, device="cuda"))
    assert all(batch.images.is_cuda and batch.labels.is_cuda and not batch.index.is_cuda for batch in there)
    here = together(digits.train_batches("all", batch=64, steps=25))
    assert equal([column.cpu() for column in together(there)], here)
