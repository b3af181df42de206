"""Images are read as they were written, from every kind of source."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from flowstill.data import Data, open_data
from support.picture_files import (
    TWO_CLASSES,
    expected,
    picture,
    seen_in_testing,
    seen_in_training,
    write_folder,
    write_parquet,
)


def test_parquet_files_are_read_unchanged(tmp_path):
    write_parquet(tmp_path / "train.parquet", TWO_CLASSES)
    write_parquet(tmp_path / "test.parquet", [1, 0, 1], first=50)
    data = open_data(Data(str(tmp_path)))
    assert data.shape == (3, 8, 8)
    assert data.classes == ("0", "1")
    assert (data.train_size, data.labelled_size, data.test_size) == (6, 6, 3)
    images, labels = seen_in_training(data, 6)
    assert labels == TWO_CLASSES
    assert images.equal(expected(range(6)))
    images, labels = seen_in_testing(data)
    assert labels == [1, 0, 1]
    assert images.equal(expected(range(50, 53)))


def test_mean_and_deviation_are_the_training_images(tmp_path):
    write_parquet(tmp_path / "train.parquet", TWO_CLASSES)
    write_parquet(tmp_path / "test.parquet", [1, 0, 1], first=50)
    values = expected(range(6)).double() / 255
    data = open_data(Data(str(tmp_path)))
    assert data.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), rel=1e-9)
    assert data.std == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), rel=1e-9)
    (batch,) = data.train_batches("all", batch=6, steps=1)
    assert batch.images.mean((0, 2, 3)).abs().max() < 1e-6
    assert (batch.images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_shards_in_the_hub_layout_with_declared_classes(tmp_path):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=["cat", "dog"]),
            "coarse_label": datasets.ClassLabel(names=["pet"]),
        }
    )
    for split, sizes, first in (("train", (4, 2), 0), ("validation", (3,), 50)):
        for shard, size in enumerate(sizes):
            rows = range(first + 4 * shard, first + 4 * shard + size)
            table = datasets.Dataset.from_dict(
                {"image": [picture(n) for n in rows], "fine_label": [n % 2 for n in rows], "coarse_label": [0] * size},
                features=features,
            )
            (tmp_path / "birds" / "data").mkdir(parents=True, exist_ok=True)
            table.to_parquet(tmp_path / "birds" / "data" / f"{split}-{shard:05}-of-{len(sizes):05}.parquet")
    data = open_data(Data("birds", root=str(tmp_path)))
    assert data.classes == ("cat", "dog")
    images, labels = seen_in_training(data, 6)
    assert labels == [0, 1, 0, 1, 0, 1]
    assert images.equal(expected(range(6)))
    assert seen_in_testing(data)[0].equal(expected(range(50, 53)))


@pytest.mark.parametrize("tests", ["test", "val", "validation"])
def test_a_folder_of_classes(tmp_path, tests):
    write_folder(tmp_path / "train", TWO_CLASSES, ["wolf", "ape"])
    write_folder(tmp_path / tests, [1, 0], ["wolf", "ape"], first=50)
    (tmp_path / "train" / "ape" / "Thumbs.db").write_bytes(b"no image")
    (tmp_path / "train" / ".hidden").mkdir()
    data = open_data(Data(str(tmp_path)))
    assert data.classes == ("ape", "wolf")
    images, labels = seen_in_training(data, 6)
    assert labels == [0, 0, 0, 1, 1, 1]
    assert images.equal(expected(range(6))[torch.tensor([1, 3, 4, 0, 2, 5])])
    assert seen_in_testing(data)[0].equal(expected(range(50, 52)))
    assert seen_in_testing(data)[1] == [0, 1]


def test_channels_and_size_are_converted(tmp_path):
    write_parquet(tmp_path / "train.parquet", TWO_CLASSES, size=(20, 10))
    write_parquet(tmp_path / "test.parquet", [1, 0, 1], first=50, size=(12, 16))
    data = open_data(Data(str(tmp_path), size=10, channels=1))
    assert data.shape == (1, 10, 10)
    # the shorter side is 10 already, so the training images are cut only
    assert seen_in_training(data, 6)[0].equal(expected(range(6), "L", (20, 10))[..., 5:15])
    whole = picture(50, (12, 16)).convert("L").resize((10, 10), Image.Resampling.BILINEAR, box=(0, 2, 12, 14))
    assert seen_in_testing(data)[0][0, 0].equal(torch.from_numpy(np.array(whole)))


def test_palettes_jpeg_orientation_and_grey_are_handled(tmp_path):
    upright = picture(1, (8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    for split in ("train", "test"):
        folder = tmp_path / split / "only"
        folder.mkdir(parents=True)
        picture(0).quantize(16).save(folder / "0.png")
        upright.save(folder / "1.jpg", exif=exif, quality=100, subsampling=0)
    images, _ = seen_in_testing(open_data(Data(str(tmp_path))))
    assert images[0].equal(torch.from_numpy(np.array(picture(0).quantize(16).convert("RGB"))).permute(2, 0, 1))
    turned = torch.from_numpy(np.array(upright)).permute(2, 0, 1).rot90(-1, (1, 2))
    assert (images[1].int() - turned.int()).abs().float().mean() < 4  # JPEG's loss


def test_digits_equal_scikit_learns(tmp_path):
    data = open_data(Data("digits"))
    assert (data.shape, data.train_size, data.test_size) == ((1, 8, 8), 1297, 500)
    scans = load_digits()
    images, labels = seen_in_testing(data)
    assert torch.tensor(labels).bincount().tolist() == [50] * 10
    both = torch.cat([seen_in_training(data, 1297)[0], images]).flatten(1).double() * 16 / 255
    there = torch.from_numpy(scans.images).flatten(1)
    assert sorted(map(tuple, both.round().int().tolist())) == sorted(map(tuple, there.int().tolist()))
    by_pixels = {
        tuple(scan.astype(int).ravel().tolist()): int(label)
        for scan, label in zip(scans.images, scans.target, strict=True)
    }
    assert [by_pixels[tuple(row)] for row in (images.flatten(1).double() * 16 / 255).round().int().tolist()] == labels
    assert open_data(Data("digits"), seed=5).fingerprint == data.fingerprint
