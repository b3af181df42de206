import io
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from flowstill.data import NAMED, Augment, Data, Facts, data_facts, find_source, open_data
from flowstill.errors import DataError

TWO_CLASSES = [0, 1, 0, 1, 1, 0]


def picture(number: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_parquet(
    file: Path, labels: list[int], first: int = 0, columns: tuple[str, str] = ("img", "label"), **size
) -> None:
    images = [{"bytes": encoded(picture(first + i, **size)), "path": None} for i in range(len(labels))]
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({columns[0]: images, columns[1]: pa.array(labels, pa.int64())}), file, row_group_size=2)


def write_folder(folder: Path, labels: list[int], names: list[str], first: int = 0) -> None:
    for number, label in enumerate(labels):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        picture(first + number).save(folder / names[label] / f"{number:03}.png")


def expected(numbers: range, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> torch.Tensor:
    values = np.stack([np.asarray(picture(n, size, mode)) for n in numbers])
    return torch.from_numpy(values[:, None] if mode == "L" else values.transpose(0, 3, 1, 2))


def raw(data, images: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    return (255 * (images * std + mean)).round().to(torch.uint8)


def seen_in_testing(data) -> tuple[torch.Tensor, list[int]]:
    batches = list(data.test_batches(batch=4))
    return raw(data, torch.cat([images for images, _ in batches])), torch.cat(
        [labels for _, labels in batches]
    ).tolist()


def seen_in_training(data, count: int) -> tuple[torch.Tensor, list[int]]:
    """The training images in the order of their rows."""
    (batch,) = data.train_batches("all", batch=count, steps=1)
    order = batch.index.argsort()
    return raw(data, batch.images[order]), batch.labels[order].tolist()


def test_parquet_files_are_read_as_they_are(tmp_path):
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


def test_shards_in_the_hub_s_layout_with_declared_classes(tmp_path):
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


def test_palettes_jpeg_orientation_and_grey_are_understood(tmp_path):
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


def test_digits_are_scikit_learn_s(tmp_path):
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


def test_what_names_tell_without_data():
    assert {name: data_facts(name) for name in NAMED} == {
        "digits": Facts((1, 8, 8), 10),
        "mnist": Facts((1, 28, 28), 10),
        "cifar10": Facts((3, 32, 32), 10),
        "cifar100": Facts((3, 32, 32), 100),
        "tcifar10": Facts((3, 32, 32), 10),
        "tcifar100": Facts((3, 32, 32), 100),
        "cub200": Facts((3, 224, 224), 200),
        "imagenet": Facts((3, 224, 224), 1000),
    }
    assert data_facts(Data("digits", size=16, channels=3)) == Facts((3, 16, 16), 10)
    assert data_facts("birds") is None


def test_known_sets_lie_under_the_root_or_in_it(tmp_path):
    for place in (tmp_path / "a" / "mnist", tmp_path / "b"):
        write_parquet(place / "train.parquet", list(range(10)) * 2, size=(28, 28), mode="L")
        write_parquet(place / "test.parquet", list(range(10)), first=50, size=(28, 28), mode="L")
    for root in ("a", "b"):
        data = open_data(Data("mnist", root=str(tmp_path / root)))
        assert (data.shape, data.train_size, data.test_size) == ((1, 28, 28), 20, 10)
    bigger = open_data(Data("mnist", root=str(tmp_path / "b"), size=32, channels=3))
    assert bigger.shape == (3, 32, 32)


def test_a_set_without_test_images_may_hold_some_out(tmp_path):
    write_parquet(tmp_path / "p" / "train.parquet", TWO_CLASSES)
    write_folder(tmp_path / "f" / "train", TWO_CLASSES, ["wolf", "ape"])
    for place in ("p", "f"):
        data = open_data(Data(str(tmp_path / place), hold_out=2))
        assert (data.train_size, data.test_size) == (4, 2)
        assert sorted(seen_in_testing(data)[1]) == [0, 1]


def test_imagenet_is_tested_on_its_validation_images(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / "imagenet" / f"{split}-00000-of-00001.parquet").parent.mkdir(exist_ok=True)
        write_parquet(tmp_path / "imagenet" / f"{split}-00000-of-00001.parquet", [0])
    source = find_source(Data("imagenet", root=str(tmp_path)))
    assert source.test[0].name.startswith("validation")
    assert find_source(Data(str(tmp_path / "imagenet"))).test[0].name.startswith("test")


def test_names_that_are_not_here_are_sought_on_the_hub():
    assert [find_source(Data(name)).place for name in ("cifar10", "cub200", "owner/name", "beans")] == [
        "uoft-cs/cifar10",
        "bentrevett/caltech-ucsd-birds-200-2011",
        "owner/name",
        "beans",
    ]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Data("cifra10"), ["'cifra10'", "Did you mean 'cifar10'?", "owner/name"]),
        (Data("./brids"), ["'brids' does not exist", "Did you mean 'birds'?"]),
        (Data("cifar10", root="dta"), ["'dta' does not exist", "Did you mean 'data'?"]),
        (Data("no/such/folder", root="data"), ["'data/no/such/folder' does not exist", "'data/no' is missing"]),
        (
            Data("cifar10", root="birds"),
            ["'birds' holds no data set 'cifar10'", "train.parquet", "It holds notes.txt, two/."],
        ),
        (Data("birds/notes.txt"), ["is a file", "'birds'"]),
        (Data("half"), ["no test split", "test.parquet", "hold_out"]),
        (Data("classes"), ["no test split", "test/<class>/", "hold_out"]),
        (Data("birds/two"), ["several data sets", "'a' and 'b'"]),
    ],
)
def test_what_cannot_be_found_is_named_with_its_fix(tmp_path, monkeypatch, spec, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "notes.txt").write_text("none")
    write_parquet(tmp_path / "half" / "train.parquet", TWO_CLASSES)
    write_folder(tmp_path / "classes" / "train", TWO_CLASSES, ["wolf", "ape"])
    for name in ("a", "b"):
        write_parquet(tmp_path / "birds" / "two" / name / "train.parquet", [0])
    with pytest.raises(DataError) as caught:
        open_data(spec)
    for word in words:
        assert word in str(caught.value)


ALONE = """
import sys
from pathlib import Path
from flowstill.data import READERS, Data, Source, open_data
from flowstill.errors import DataError
print(open_data(Data("set")).train_size, sorted(p.name for p in Path().rglob("*") if p.is_file()))
train, test = READERS["hub"].read(Source("hub", "set", "./set"))
print(len(train), test.labels.tolist(), train.class_names, test.where(1))
for name in ("cifar10", "owner/name"):
    try:
        open_data(Data(name))
    except DataError as error:
        print(error)
"""


def test_in_a_process_of_its_own_without_a_network(tmp_path):
    # The hub's client reads a local folder by the code that reads a downloaded one.
    write_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", TWO_CLASSES)
    write_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", [1, 0, 1], first=50)
    (tmp_path / "tmp").mkdir()
    places = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        env={**os.environ, **places, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    opened, local, cifar, other = done.stdout.splitlines()
    # nothing is left on disk, and nothing is said
    assert opened == "6 ['test-00000-of-00001.parquet', 'train-00000-of-00001.parquet']"
    assert done.stderr == ""
    assert local == "6 [1, 0, 1] None row 1 of split 'test' of './set'"
    assert "'uoft-cs/cifar10' could not be downloaded from the Hugging Face hub" in cifar
    assert "HF_HUB_OFFLINE" in cifar
    assert "Give a local copy with --data-root DIR, as DIR/cifar10/{train,test}.parquet." in cifar
    assert "'owner/name'" in other


def test_importing_the_package_is_light():
    code = "import sys, flowstill.data; print([m for m in ('torch', 'datasets', 'sklearn', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert isinstance(Augment(crop=1), Augment)
