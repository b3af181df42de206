"""CIFAR's Python version (Krizhevsky 2009): pickles of plain numpy arrays, read without running their code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from flowstill.data.archives import Archive, Layout
from flowstill.data.reader import Source, register_reader
from flowstill.data.splits import Split, array_split
from flowstill.errors import DataError

SHAPE = (3, 32, 32)  # a row of ``data``: red, green, blue, each by rows
ARRAYS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}


@register_reader("cifar")
class Cifar(Archive):
    """CIFAR-10 or CIFAR-100 (fine labels)."""

    about = "the Python version of CIFAR-10 or CIFAR-100: data_batch_1 to 5 and test_batch, or train and test"
    layouts: ClassVar[Mapping[str, Layout]] = {
        "cifar10": Layout(
            ("cifar-10-batches-py",), tuple(f"data_batch_{number}" for number in range(1, 6)), ("test_batch",)
        ),
        "cifar100": Layout(("cifar-100-python",), ("train",), ("test",)),
    }

    def read(self, source: Source) -> tuple[Split, Split | None]:
        """Training and test images.

        Raises:
            DataError: a file is damaged or of another kind; the text names it.
        """
        names = _class_names(Path(source.place))
        train = _split(source.train, names, source.place)
        return train, _split(source.test, names, source.place) if source.with_test else None


def _split(files: tuple[Path, ...], names: tuple[str, ...] | None, folder: str) -> Split:
    batches = [_batch(file) for file in files]
    pixels = np.concatenate([images for images, _ in batches])
    labels = torch.from_numpy(np.concatenate([numbers for _, numbers in batches]))
    parts = tuple((repr(str(file)), len(numbers)) for file, (_, numbers) in zip(files, batches, strict=True))
    return array_split(pixels, labels, names, parts[0][0] if len(parts) == 1 else repr(folder), parts)


def _batch(file: Path) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], np.ndarray[Any, np.dtype[np.int64]]]:
    """One file's images, (N, 32, 32, 3), and labels, (N,)."""
    content = _contents(file)
    labels = content.get("fine_labels", content.get("labels"))
    if not isinstance(labels, list) or not all(type(label) is int and abs(label) < 2**63 for label in labels):
        raise _unreadable(file, "'labels' (or 'fine_labels') is not a list of numbers")
    data = content.get("data")
    if not isinstance(data, _ArrayStandIn) or not data.is_bytes((len(labels), int(np.prod(SHAPE)))):
        raise _unreadable(file, f"'data' is not an array of {len(labels)} rows (one per label) of 3072 bytes")
    pixels = np.frombuffer(data.state[-1], np.uint8).reshape(-1, *SHAPE).transpose(0, 2, 3, 1)
    return pixels, np.array(labels, np.int64)


def _class_names(folder: Path) -> tuple[str, ...] | None:
    """The class names in the file beside the batches; None without that file."""
    for file, key in ((folder / "batches.meta", "label_names"), (folder / "meta", "fine_label_names")):
        if file.is_file():
            names = _contents(file).get(key)
            if not isinstance(names, list) or not all(isinstance(name, (str, bytes)) for name in names):
                raise _unreadable(file, f"{key!r} is not a list of names")
            return tuple(map(_text, names))
    return None


class _ArrayStandIn:
    """Stands for a numpy array or its type, and keeps what the pickle says of it. No code of numpy is called."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def is_bytes(self, shape: tuple[int, ...]) -> bool:
        """Whether it is a uint8 array of that shape in C order. Its state: version, shape, type, order, content."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            return False
        _, found, kind, by_columns, content = self.state
        of_bytes = isinstance(kind, _ArrayStandIn) and kind.arguments[:1] in (("u1",), (b"u1",))
        whole = isinstance(content, bytes) and len(content) == int(np.prod(shape))
        return found == shape and of_bytes and not by_columns and whole


class _SafeUnpickler(pickle.Unpickler):
    """Loads plain Python values, and stand-ins for arrays; refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ARRAYS:
            return _ArrayStandIn
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return str.encode
        raise pickle.UnpicklingError(
            f"it asks for '{module}.{name}', which the set does not contain; none of it was run"
        )


def _contents(file: Path) -> dict[str, Any]:
    """The mapping in a file.

    Raises:
        DataError: it holds anything but plain values and arrays.
    """
    try:
        with file.open("rb") as stream:
            content = _SafeUnpickler(stream, encoding="bytes").load()
    except Exception as error:  # damaged pickles raise many kinds of errors
        raise _unreadable(file, str(error) or type(error).__name__) from None
    if not isinstance(content, dict):
        raise _unreadable(file, "expected a mapping")
    return {_text(key): value for key, value in content.items()}


def _text(value: Any) -> str:
    """Text, also from the bytes that Python 2 wrote."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _unreadable(file: Path, reason: str) -> DataError:
    return DataError(
        f"{str(file)!r} is not a file of CIFAR's Python version: {reason}. Unpack the set's own archive again."
    )
