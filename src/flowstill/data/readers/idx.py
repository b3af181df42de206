"""MNIST's own files (LeCun et al. 1998): idx, as they are or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from flowstill.data.archives import Archive, Layout
from flowstill.data.reader import Source, register_reader
from flowstill.data.splits import Split, array_split
from flowstill.errors import DataError

BYTES = 8  # the code for values of one byte without a sign


@register_reader("idx")
class Idx(Archive):
    """Two files for each split, one of images and one of labels."""

    about = "MNIST's own files: train-images-idx3-ubyte and so on, plain or gzipped"
    layouts: ClassVar[Mapping[str, Layout]] = {
        "mnist": Layout(
            ("MNIST/raw", "raw", "MNIST"),
            ("train-images[-.]idx3-ubyte*", "train-labels[-.]idx1-ubyte*"),
            ("t10k-images[-.]idx3-ubyte*", "t10k-labels[-.]idx1-ubyte*"),
        )
    }

    def read(self, source: Source) -> tuple[Split, Split | None]:
        """Training and test images.

        Raises:
            DataError: a file is damaged or of another kind; the text names it.
        """
        return _split(*source.train), _split(*source.test) if source.with_test else None


def _split(images: Path, labels: Path) -> Split:
    pixels, numbers = _read(images, 3), _read(labels, 1)
    if len(pixels) != len(numbers):
        raise DataError(
            f"{str(images)!r} has {len(pixels)} images, but {str(labels)!r} {len(numbers)} labels. Download both again."
        )
    place = repr(str(images))
    return array_split(pixels, torch.from_numpy(numbers.astype(np.int64)), None, place, ((place, len(pixels)),))


def _read(file: Path, axes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An array of uint8: two zeros, the values' code, the number of axes, their lengths (4 bytes each), the values."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{str(file)!r} cannot be read ({error}). Download it again.") from None
    first = 4 + 4 * axes
    if content[:4] != bytes([0, 0, BYTES, axes]) or len(content) < first:
        raise DataError(f"{str(file)!r} is not an idx file of bytes with {axes} axes. Download it again.")
    shape = np.frombuffer(content[4:first], ">u4").tolist()
    if len(content) - first != math.prod(shape):
        raise DataError(
            f"{str(file)!r} declares {'x'.join(map(str, shape))} values, but {len(content) - first} bytes follow. "
            "Download it again."
        )
    return np.frombuffer(content, np.uint8, offset=first).reshape(shape)
