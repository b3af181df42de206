"""Splits of a data set: encoded images with their labels, as Hugging Face ``datasets`` whatever they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowstill.data.distortion import Distortion
from flowstill.data.locate import Source
from flowstill.data.order import stratified
from flowstill.errors import DataError, did_you_mean

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
Encoded = Mapping[str, Any]  # "bytes": what an image file holds, or None; "path": the file, where bytes are None


@dataclass(frozen=True)
class Split:
    """One split. table: a ``datasets.Dataset``. labels: (N,) int64.

    class_names: as declared by the source, None if it holds numbers only. parts: the files that the rows come from,
    each with its number of rows; empty if each row is a file of its own. place: for messages.
    column: of the table, holds the images, left encoded. distortion: what is done to each once it is decoded.
    """

    table: Any
    labels: Tensor
    class_names: tuple[str, ...] | None
    place: str
    parts: tuple[tuple[str, int], ...] = ()
    column: str = "image"
    distortion: Distortion | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def encoded(self, row: int) -> Encoded:
        """One image as it is stored."""
        # Through Arrow itself, for indexing the data set costs thirty times as much.
        image: Encoded = self.table.data.column(self.column)[row].as_py()
        return image

    def where(self, row: int) -> str:
        """Where a row comes from, for messages: its file, or the file and the row in it."""
        if not self.parts:
            return repr(self.encoded(row)["path"])
        part = 0
        while row >= self.parts[part][1]:
            row -= self.parts[part][1]
            part += 1
        return f"row {row} of {self.parts[part][0]}"

    def row_of(self, wanted: Tensor) -> str:
        """Where the first row lies for which ``wanted``, (N,) bool, is true."""
        return self.where(int(wanted.nonzero()[0]))


def file_split(files: Sequence[Path], labels: Tensor, names: tuple[str, ...] | None, place: str) -> Split:
    """Images that are a file each, labels (N,) int64."""
    return Split(_table([{"bytes": None, "path": str(file)} for file in files]), labels, names, place)


def array_split(
    pixels: np.ndarray[Any, np.dtype[np.uint8]],
    labels: Tensor,
    names: tuple[str, ...] | None,
    place: str,
    parts: tuple[tuple[str, int], ...],
) -> Split:
    """Images that are numbers already, (N, H, W) or (N, H, W, 3), labels (N,) int64; kept as PGM or PPM."""
    header = b"P%d %d %d 255\n" % (5 if pixels.ndim == 3 else 6, pixels.shape[2], pixels.shape[1])
    table = _table([{"bytes": header + image.tobytes(), "path": None} for image in pixels])
    return Split(table, labels, names, place, parts)


def _table(images: list[dict[str, Any]]) -> Any:
    import datasets

    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict({"image": images}, features=features)


def folder_split(folder: Path) -> Split:
    """``FOLDER/<class>/**/*.png`` and the like; hidden files and files that are no images are passed over.

    Raises: DataError if there is no folder for any class.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{str(folder)!r} has no folder for any class. Sort its images into {folder.name}/<class>/.")
    files = [(path, label) for label, name in enumerate(names) for path in _image_files(folder / name)]
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    return file_split([path for path, _ in files], labels, tuple(names), repr(str(folder)))


def _image_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_FILES and not p.name.startswith("."))


def folder_splits(source: Source, *, with_test: bool = True) -> tuple[Split, Split | None]:
    """Training and test images of a folder. Raises: DataError if their classes differ."""
    train = folder_split(source.train[0])
    if not with_test:
        return train, None
    test = folder_split(source.test[0])
    assert train.class_names is not None
    assert test.class_names is not None
    for here, there in ((test, train), (train, test)):
        for name in here.class_names or ():
            if name not in (there.class_names or ()):
                raise DataError(
                    f"Train and test have different classes: {here.place} has {name!r}, {there.place} has not. "
                    f"{did_you_mean(name, there.class_names or ())}"
                )
    return train, test


def digits_splits() -> tuple[Split, Split]:
    """The 1 797 scans that come with scikit-learn, 8x8, 0 to 16 stretched to 0 to 255.

    500 of them, of each class equally many and always the same, are for testing.
    """
    from sklearn.datasets import load_digits

    scans = load_digits()
    labels = torch.from_numpy(scans.target.astype(np.int64))
    pixels = np.rint(scans.images * (255 / 16)).astype(np.uint8)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[stratified(labels, 500, key=0)] = True

    def split(rows: Tensor, name: str) -> Split:
        place = f"the {name} split of 'digits'"
        return array_split(pixels[rows], labels[rows], tuple(map(str, range(10))), place, ((place, len(rows)),))

    return split((~chosen).nonzero().flatten(), "training"), split(chosen.nonzero().flatten(), "test")
