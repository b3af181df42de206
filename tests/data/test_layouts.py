import io
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from flowstill.data import Augment, Data, find_source, open_data
from flowstill.errors import DataError
from support.archive_files import idx, pictures, python2, python3, write_cifar, write_cub, write_mnist


def seen(data) -> tuple[torch.Tensor, list[int], torch.Tensor, list[int]]:
    """Training images in the order of their rows, their labels, test images, their labels."""
    (batch,) = data.train_batches("all", batch=data.train_size, steps=1)
    order = batch.index.argsort()
    tests = list(data.test_batches(batch=64))
    mean, std = (255 * torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    train, test = (
        (x * std + mean).round().to(torch.uint8)
        for x in (batch.images[order], torch.cat([images for images, _ in tests]))
    )
    return train, batch.labels[order].tolist(), test, torch.cat([labels for _, labels in tests]).tolist()


def error(spec: Data) -> str:
    with pytest.raises(DataError) as caught:
        open_data(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("written", [python2, python3, lambda content: pickle.dumps(content, protocol=4)])
@pytest.mark.parametrize(
    ("name", "classes", "place"),
    [("cifar10", 10, "cifar-10-batches-py"), ("cifar100", 100, "cifar100/cifar-100-python")],
)
def test_cifar_python_batches(tmp_path, name, classes, place, written):
    images = torch.from_numpy(write_cifar(tmp_path / place, classes, name == "cifar100", written))
    data = open_data(Data(name, root=str(tmp_path)))
    assert data.classes == tuple(f"class {number}" for number in range(classes))
    train, labels, test, test_labels = seen(data)
    assert train.equal(images[:classes])
    assert labels == list(range(classes))
    assert test.equal(images[classes:])
    assert test_labels == list(range(5))


def test_batches_without_class_names_and_directly_in_the_root(tmp_path):
    write_cifar(tmp_path, 10, fine=False)
    (tmp_path / "batches.meta").unlink()
    assert open_data(Data("cifar10", root=str(tmp_path))).classes[:2] == ("airplane", "automobile")
    (tmp_path / "test_batch").unlink()
    assert "has no file 'test_batch'" in error(Data("cifar10", root=str(tmp_path)))
    for number in range(5):
        content = {"data": pictures(4, 3072), "labels": [(4 * number + row) % 10 for row in range(4)]}
        (tmp_path / f"data_batch_{number + 1}").write_bytes(python2(content))
    data = open_data(Data("cifar10", root=str(tmp_path), hold_out=10))
    assert (data.train_size, data.test_size) == (10, 10)


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("payload", "asked"),
    [
        (Evil(os.system, ("touch ran",)), "posix.system" if os.name == "posix" else "nt.system"),
        (Evil(eval, ("open('ran', 'w')",)), "builtins.eval"),
        (Evil(np.load, ("ran",)), "numpy.load"),
        (np.float64(1), "multiarray.scalar"),
    ],
)
def test_a_pickle_that_asks_for_more_than_arrays_runs_nothing(tmp_path, monkeypatch, payload, asked):
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path, 10, fine=False)
    for protocol in (0, 2, 4):
        content = {b"data": pictures(2, 3072), b"labels": [0, 1], b"more": payload}
        (tmp_path / "data_batch_2").write_bytes(pickle.dumps(content, protocol=protocol))
        text = error(Data("cifar10", root=str(tmp_path)))
        assert f"{str(tmp_path / 'data_batch_2')!r} is not a file of CIFAR's Python version: it asks for" in text
        asked_then = asked.replace("builtins", "__builtin__") if protocol < 3 else asked
        assert asked in text or asked_then in text
        assert "none of it was run" in text
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Ran out of input"),
        (b"no pickle", "is not a file of CIFAR's Python version"),
        (python2({"data": pictures(2, 3072), "labels": [0, 1]})[:3000], "truncated"),
        (
            python2({"data": pictures(2, 3071), "labels": [0, 1]}),
            "not an array of 2 rows (one per label) of 3072 bytes",
        ),
        (python2({"data": pictures(3, 3072), "labels": [0, 1]}), "not an array of 2 rows"),
        (python2({"labels": [0, 1]}), "not an array of 2 rows"),
        (python2({"data": pictures(2, 3072)}), "'labels' (or 'fine_labels') is not a list of numbers"),
        (python2({"data": pictures(2, 3072), "labels": ["0", "1"]}), "is not a list of numbers"),
        (python3({"data": pictures(2, 3072).astype(np.int16), "labels": [0, 1]}), "not an array of 2 rows"),
        (python3({"data": np.asfortranarray(pictures(2, 3072)), "labels": [0, 1]}), "not an array of 2 rows"),
        (python3({"data": pictures(2, 3072), "labels": [0, 2**70]}), "is not a list of numbers"),
        (pickle.dumps([1, 2], protocol=2), "expected a mapping"),
        # an array whose state is no array's, and a call that sets the state of what stands for arrays
        (b"\x80\x02}(U\x06labels](J\x00\x00\x00\x00eU\x04datacnumpy\nndarray\n)R(K\x01tbu.", "not an array of 1 rows"),
        (b"\x80\x02}(U\x06labels](J\x00\x00\x00\x00eU\x04datacnumpy\nndarray\n(K\x01tbu.", "__setstate__"),
    ],
)
def test_an_invalid_batch_file_is_named(tmp_path, content, said):
    write_cifar(tmp_path, 10, fine=False)
    (tmp_path / "data_batch_2").write_bytes(content)
    text = error(Data("cifar10", root=str(tmp_path)))
    assert repr(str(tmp_path / "data_batch_2")) in text
    assert said in text


def test_a_missing_batch_and_a_wrong_label_are_named(tmp_path):
    write_cifar(tmp_path, 10, fine=False)
    (tmp_path / "data_batch_2").write_bytes(python2({"data": pictures(2, 3072), "labels": [2, 10]}))
    assert f"row 1 of {str(tmp_path / 'data_batch_2')!r} has label 10" in error(Data("cifar10", root=str(tmp_path)))
    (tmp_path / "batches.meta").write_bytes(python2({"label_names": [1]}))
    assert "'label_names' is not a list of names" in error(Data("cifar10", root=str(tmp_path)))
    (tmp_path / "data_batch_4").unlink()
    assert f"{str(tmp_path)!r} has no file 'data_batch_4'" in error(Data("cifar10", root=str(tmp_path)))


@pytest.mark.parametrize(
    ("place", "end", "dot"), [("mnist", ".gz", "-"), ("MNIST/raw", "", "-"), ("mnist/raw", ".gz", "-"), (".", "", ".")]
)
def test_mnist_idx_files(tmp_path, place, end, dot):
    images = torch.from_numpy(write_mnist(tmp_path / "root" / place, end, dot))
    data = open_data(Data("mnist", root=str(tmp_path / "root")))
    assert data.shape == (1, 28, 28)
    train, labels, test, test_labels = seen(data)
    assert train[:, 0].equal(images[:20])
    assert test[:, 0].equal(images[20:])
    assert (labels, test_labels) == (list(range(10)) * 2, list(range(5)))


def test_unpacked_idx_files_are_preferred_to_packed_ones(tmp_path):
    write_mnist(tmp_path / "mnist")
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (tmp_path / "mnist" / f"{name}.gz").write_bytes(b"damaged")
    assert open_data(Data("mnist", root=str(tmp_path))).train_size == 20


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train-images-idx3-ubyte", idx(pictures(3, 28, 28))[:-1], "declares 3x28x28 values, but 2351 bytes follow"),
        ("train-images-idx3-ubyte", idx(pictures(20, 784)), "is not an idx file of bytes with 3 axes"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03\0\0", "is not an idx file of bytes"),
        ("t10k-images-idx3-ubyte", b"<html>", "is not an idx file of bytes"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(4, np.uint8)), "has 5 images, but"),
        ("train-labels-idx1-ubyte", idx(np.full(20, 12, np.uint8)), "has label 12, out of range"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, name, content, said):
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / name).write_bytes(content)
    assert said in (text := error(Data("mnist", root=str(tmp_path))))
    assert str(tmp_path / "mnist") in text


def test_damaged_gzip_and_missing_idx_files_are_named(tmp_path):
    write_mnist(tmp_path / "mnist", ".gz")
    file = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    for damaged in (b"no gzip", file.read_bytes()[:-20], file.read_bytes()[:30] + bytes(200)):
        file.write_bytes(damaged)
        assert f"{str(file)!r} cannot be read" in error(Data("mnist", root=str(tmp_path)))
    file.unlink()
    assert "has no file 't10k-images[-.]idx3-ubyte*'" in error(Data("mnist", root=str(tmp_path)))


@pytest.mark.parametrize(("place", "named"), [("CUB_200_2011", True), ("cub200/CUB_200_2011", True), ("cub200", False)])
def test_original_cub_files(tmp_path, place, named):
    write_cub(tmp_path / place, named=named)
    data = open_data(Data("cub200", root=str(tmp_path), size=8))
    assert (data.shape, data.train_size, data.test_size) == ((3, 8, 8), 200, 200)
    assert data.classes[6] == ("007.Bird_6" if named else "6")
    train, labels, test, test_labels = seen(data)
    assert train[:, 0, 0, 0].tolist() == labels == list(range(200))
    assert test[:, 0, 0, 0].tolist() == test_labels == list(range(200))
    assert train[:, 1].unique().tolist() == [100]
    assert test[:, 1].unique().tolist() == [0]


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("images.txt", "3 002.Bird_1/0.png\n", "3\n", "Line 3 of"),
        ("images.txt", "3 002.Bird_1/0.png\n", "2 002.Bird_1/0.png\n", "gives 2 a second time"),
        ("train_test_split.txt", "\n4 1\n", "\n", "has no line for image 4 (002.Bird_1/1.png)"),
        ("train_test_split.txt", "\n4 1\n", "\n4 2\n", "is marked '2'; expected 1 (training) or 0 (test)"),
        ("image_class_labels.txt", "\n4 2\n", "\n4 201\n", "has class '201'; expected a number from 1 to 200"),
        ("classes.txt", "200 200.Bird_199", "300 200.Bird_199", "does not number its classes from 1 to 200"),
        ("images.txt", "4 002.Bird_1/1.png", "4 002.Bird_1/9.png", "9.png' is not a readable image"),
    ],
)
def test_inconsistent_cub_files_are_named(tmp_path, file, old, new, said):
    write_cub(tmp_path / "cub200")
    text = (tmp_path / "cub200" / file).read_text()
    assert old in text
    (tmp_path / "cub200" / file).write_text(text.replace(old, new, 1))
    if file == "classes.txt":  # no image has the class that lost its number
        labels = tmp_path / "cub200" / "image_class_labels.txt"
        labels.write_text(labels.read_text().replace(" 200\n", " 199\n"))
    assert said in error(Data("cub200", root=str(tmp_path), size=8))


def test_a_missing_cub_file_is_named(tmp_path):
    write_cub(tmp_path / "CUB_200_2011")
    (tmp_path / "CUB_200_2011" / "train_test_split.txt").unlink()
    assert "has no file 'train_test_split.txt'" in error(Data("cub200", root=str(tmp_path)))


def test_imagenet_folders_are_tested_on_val(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 8)).save(buffer, "PNG")
    root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    for number in range(1000):
        for split in ("train", "val"):
            (root / split / f"n{number:08}").mkdir(parents=True)
            (root / split / f"n{number:08}" / f"{number}.JPEG").write_bytes(buffer.getvalue())
    (root / "test").mkdir()
    (root / "test" / "ILSVRC2012_test_1.JPEG").write_bytes(buffer.getvalue())
    (tmp_path / "other" / "train").mkdir(parents=True)
    data = open_data(Data("imagenet", root=str(tmp_path), size=8, augment=Augment(resized_crop=True), workers=0))
    assert (data.shape, data.train_size, data.test_size) == ((3, 8, 8), 1000, 1000)
    assert data.classes[17] == "n00000017"
    for place in ("imagenet", "ILSVRC2012"):
        (tmp_path / place / "train" / "n1").mkdir(parents=True)
        (tmp_path / place / "val" / "n1").mkdir(parents=True)
        source = find_source(Data("imagenet", root=str(tmp_path)))
        assert source.train[0] in (tmp_path / "imagenet" / "train", root / "train")
    assert source.place == str(tmp_path / "imagenet")


def test_parquet_files_and_folders_are_still_found_by_name_beside_archives(tmp_path):
    for split in ("train", "test"):
        for number in range(10):
            (tmp_path / "cifar10" / split / str(number)).mkdir(parents=True)
            Image.fromarray(pictures(1, 32, 32, 3, seed=number)[0]).save(
                tmp_path / "cifar10" / split / str(number) / "0.png"
            )
    assert find_source(Data("cifar10", root=str(tmp_path))).reader == "folder"
    assert open_data(Data("tcifar10", root=str(tmp_path))).train_size == 10
    png = (tmp_path / "cifar10" / "train" / "0" / "0.png").read_bytes()
    for split in ("train", "test"):
        rows = {"img": [{"bytes": png, "path": None}] * 10, "label": list(range(10))}
        pq.write_table(pa.table(rows), tmp_path / "cifar10" / f"{split}.parquet")
    assert find_source(Data("cifar10", root=str(tmp_path))).reader == "parquet"
    assert open_data(Data("tcifar10", root=str(tmp_path))).train_size == 10


def test_an_empty_root_lists_what_was_looked_for(tmp_path):
    text = error(Data("cifar10", root=str(tmp_path)))
    assert "expected data_batch_1 (cifar), or train.parquet or train-*.parquet (parquet), or train/<class>/" in text
    assert "It holds nothing" in text
