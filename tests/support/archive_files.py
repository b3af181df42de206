"""Writes data sets as their own archives unpack, small ones of random images."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def pictures(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def python2(content: dict) -> bytes:
    """A mapping as Python 2's cPickle wrote it with protocol 2: byte strings, numpy of 2009."""

    def one(value) -> bytes:
        if isinstance(value, str):
            return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<I", len(value))) + (
                value.encode("latin1")
            )
        if isinstance(value, list):
            return b"](" + b"".join(map(one, value)) + b"e"
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        rows, columns = value.shape
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        raw = b"T" + struct.pack("<I", value.size) + value.tobytes()
        return made + b"(K\x01" + one(rows) + one(columns) + b"\x86" + kind + b"\x89" + raw + b"tb"

    return b"\x80\x02}(" + b"".join(one(key) + one(value) for key, value in content.items()) + b"u."


def python3(content: dict) -> bytes:
    return pickle.dumps({key.encode(): value for key, value in content.items()}, protocol=2)


def write_cifar(folder: Path, classes: int, fine: bool, written=python2) -> np.ndarray:
    """One training image of each class (in five files for CIFAR-10) and five test images, as rows of (N, 3, 32, 32)."""
    folder.mkdir(parents=True, exist_ok=True)
    images = pictures(classes + 5, 3, 32, 32)
    labels = [*range(classes), *range(5)]
    ends = range(0, classes, classes // 5)
    spans = {f"data_batch_{n + 1}": (first, first + classes // 5) for n, first in enumerate(ends)}
    spans = ({"train": (0, classes)} if fine else spans) | {"test" if fine else "test_batch": (classes, classes + 5)}
    for name, (first, last) in spans.items():
        content = {"batch_label": "some", "data": images[first:last].reshape(last - first, -1)}
        if fine:
            content |= {"coarse_labels": [0] * (last - first), "fine_labels": labels[first:last]}
        else:
            content |= {"labels": labels[first:last]}
        (folder / name).write_bytes(written(content))
    names = {"fine_label_names" if fine else "label_names": [f"class {number}" for number in range(classes)]}
    (folder / ("meta" if fine else "batches.meta")).write_bytes(written(names))
    return images


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_mnist(folder: Path, end: str = "", dot: str = "-") -> np.ndarray:
    folder.mkdir(parents=True)
    images, labels = pictures(25, 28, 28), np.arange(25, dtype=np.uint8) % 10
    for name, values in {
        f"train-images{dot}idx3-ubyte": images[:20],
        f"train-labels{dot}idx1-ubyte": labels[:20],
        f"t10k-images{dot}idx3-ubyte": images[20:],
        f"t10k-labels{dot}idx1-ubyte": labels[20:],
    }.items():
        (folder / (name + end)).write_bytes(gzip.compress(idx(values)) if end else idx(values))
    return images


def write_cub(folder: Path, *, named: bool = True) -> None:
    """200 species, each with a training and a test photograph of its own size, whose red value tells them apart."""
    (folder / "images").mkdir(parents=True)
    lines: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": [], "classes": []}
    for number in range(200):
        bird = f"{number + 1:03}.Bird_{number}"
        (folder / "images" / bird).mkdir()
        lines["classes"].append(f"{number + 1} {bird}")
        for part in (0, 1):
            image = 2 * number + part + 1
            size = (10, 8) if part else (8, 12)
            Image.new("RGB", size, (number, 100 * part, 0)).save(folder / "images" / bird / f"{part}.png")
            lines["images"].append(f"{image} {bird}/{part}.png")
            lines["image_class_labels"].append(f"{image} {number + 1}")
            lines["train_test_split"].append(f"{image} {part}")
    for name, rows in lines.items():
        if named or name != "classes":
            (folder / f"{name}.txt").write_text("\n".join(rows) + "\n")
