"""What parquet files and sets of the Hugging Face hub have in common: tables, read through ``datasets``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flowstill.data.splits import Split
from flowstill.errors import DataError

LABELS = ("label", "fine_label", "labels")


def find_columns(features: Any, place: str) -> tuple[str, str]:
    """The names of the image column and of the label column.

    Raises:
        DataError: there is not one of each.
    """
    import datasets

    def is_image(kind: Any) -> bool:
        binary = isinstance(kind, datasets.Value) and kind.dtype in ("binary", "large_binary")
        return binary or isinstance(kind, datasets.Image) or (isinstance(kind, dict) and "bytes" in kind)

    def is_label(kind: Any) -> bool:
        return isinstance(kind, datasets.ClassLabel) or (isinstance(kind, datasets.Value) and "int" in kind.dtype)

    columns = f"It has {', '.join(f'{name!r}: {_kind(kind)}' for name, kind in features.items())}."
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    images = images or [name for name, kind in features.items() if is_image(kind)]
    if len(images) != 1:
        what = f"several columns of images, {' and '.join(map(repr, images))}" if images else "no column of images"
        raise DataError(f"{place} has {what}; keep one, each value the bytes of an image file. {columns}")
    labels = [name for name in LABELS if name in features][:1]
    if labels and not is_label(features[labels[0]]):
        raise DataError(f"Column {labels[0]!r} of {place} holds no class numbers (integers). {columns}")
    labels = labels or [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = labels or [name for name, kind in features.items() if is_label(kind)]
    if len(labels) != 1:
        what = (
            f"several columns that may be the label, {' and '.join(map(repr, labels))}" if labels else "no label column"
        )
        raise DataError(f"{place} has {what}; call the one with class numbers (integers) 'label'. {columns}")
    return images[0], labels[0]


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__)


def table_split(
    table: Any, image: str, label: str, names: Any, place: str, parts: tuple[tuple[str, int], ...]
) -> Split:
    """A split of a ``datasets.Dataset``.

    Raises:
        DataError: a row has no label; the text names the first.
    """
    column = table.data.column(label)
    labels: Tensor = torch.from_numpy(column.fill_null(0).to_numpy().copy()).to(torch.int64)
    made = Split(table, labels, tuple(names) if names else None, place, parts, image)
    if column.null_count:
        missing = torch.from_numpy(column.is_null().to_numpy().copy())
        raise DataError(f"{made.row_of(missing)} has no label in column {label!r}. Remove the row or give its class.")
    return made


@contextmanager
def quiet(always: bool = False) -> Iterator[None]:
    """No progress bars where nobody watches, or at all; as they were afterwards."""
    import datasets.utils as ours
    import huggingface_hub.utils as hub

    silent = always or not sys.stderr.isatty()
    before = [(library, library.are_progress_bars_disabled()) for library in (ours, hub)]
    try:
        for library, _ in before:
            if silent:
                library.disable_progress_bars()
        yield
    finally:
        for library, disabled in before:
            if silent and not disabled:
                library.enable_progress_bars()
