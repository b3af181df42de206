"""Splits of a data set: encoded images with their labels, as Hugging Face ``datasets``, whatever the layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from flowstill.data.distortion import Distortion

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Encoded = Mapping[str, Any]  # "bytes": what an image file holds, or None; "path": the file, where bytes are None


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    Attributes:
        table: a ``datasets.Dataset``.
        labels: (N,) int64.
        class_names: names declared by the source; None if it has numbers only.
        place: where it comes from, for messages.
        parts: the files that the rows come from, each with its number of rows; empty if each row is its own file.
        column: the table's column of encoded images.
        distortion: applied to each image after decoding.
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
        # Arrow's own column: indexing the data set takes thirty times as long.
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
    """A split of images that are a file each; labels (N,) int64."""
    return images_split([{"bytes": None, "path": str(file)} for file in files], labels, names, place)


def array_split(
    pixels: Pixels, labels: Tensor, names: tuple[str, ...] | None, place: str, parts: tuple[tuple[str, int], ...]
) -> Split:
    """A split of arrays, (N, H, W) or (N, H, W, 3); labels (N,) int64."""
    return images_split([encode_array(image) for image in pixels], labels, names, place, parts)


def encode_array(image: Pixels) -> Encoded:
    """An image (H, W) or (H, W, 3) as a PGM or PPM file."""
    header = b"P%d %d %d 255\n" % (5 if image.ndim == 2 else 6, image.shape[1], image.shape[0])
    return {"bytes": header + image.tobytes(), "path": None}


def images_split(
    images: list[Encoded],
    labels: Tensor,
    names: tuple[str, ...] | None,
    place: str,
    parts: tuple[tuple[str, int], ...] = (),
) -> Split:
    """A split of encoded images; labels (N,) int64."""
    import datasets

    features = datasets.Features({"image": datasets.Image(decode=False)})
    return Split(datasets.Dataset.from_dict({"image": images}, features=features), labels, names, place, parts)
