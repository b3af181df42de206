"""Parquet files and sets of the Hugging Face hub, read through ``datasets``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowstill.data.locate import Source
from flowstill.data.splits import Split
from flowstill.errors import DataError

IN_MEMORY = 4 * 2**30  # bytes: parquet files above it go through datasets' cache on disk
LABELS = ("label", "fine_label", "labels")


def parquet_splits(source: Source, *, with_test: bool = True) -> tuple[Split, Split | None]:
    """Training and test images from parquet files.

    Up to 4 GiB they are held in memory and leave nothing on disk; above, ``datasets`` converts them once into its
    cache (``HF_DATASETS_CACHE``), for random access. Raises: DataError.
    """
    test = _parquet_split(source.test) if with_test else None
    return _parquet_split(source.train), test


def _parquet_split(files: tuple[Path, ...]) -> Split:
    import datasets
    import pyarrow.parquet

    parts, schema = [], None
    for file in files:
        try:
            schema = schema or pyarrow.parquet.read_schema(file)
            parts.append((repr(str(file)), pyarrow.parquet.read_metadata(file).num_rows))
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{str(file)!r} is no readable parquet file ({error}). Fetch it anew.") from None
    place = parts[0][0] if len(parts) == 1 else repr(str(files[0].parent))
    if not any(rows for _, rows in parts):
        raise DataError(f"{place} holds no image.")
    found = datasets.Features.from_arrow_schema(schema)
    image, label = find_columns(found, place)
    wanted = datasets.Features({image: datasets.Image(decode=False), label: datasets.Value("int64")})
    small = sum(file.stat().st_size for file in files) <= IN_MEMORY
    with tempfile.TemporaryDirectory() as scratch, _quiet(always=small):
        try:
            table = datasets.load_dataset(
                "parquet",
                data_files=[str(file) for file in files],
                columns=[image, label],
                features=wanted,
                split="train",
                cache_dir=scratch if small else None,
                keep_in_memory=small,
            )
        except (datasets.exceptions.DatasetsError, pyarrow.ArrowException, OSError, ValueError) as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise DataError(
                f"{place} cannot be read, with images in {image!r} and labels in {label!r}: {reason}. Fetch it anew."
            ) from None
    return _split(table, image, label, getattr(found[label], "names", None), place, tuple(parts))


def hub_splits(source: Source, *, with_test: bool = True) -> tuple[Split, Split | None]:
    """Training and test images of a set on the Hugging Face hub, fetched once into its cache.

    Raises: DataError if there is no such set, the hub cannot be reached, or the set has not the splits.
    """
    import datasets

    with _quiet():
        try:
            tables = datasets.load_dataset(source.place)
        except Exception as error:  # what the hub's client raises depends on its HTTP library
            raise DataError(_hub_failure(source, error)) from None
    names = ["train", *(name for name in source.tests if with_test and name in tables)][: 1 + with_test]
    if "train" not in tables or len(names) < 1 + with_test:
        raise DataError(
            f"The hub's data set {source.place!r} has splits {', '.join(map(repr, tables))}, but training and test "
            "images are needed ('train' and 'test'). Set 'hold_out' to test on some of the training images."
        )
    splits = []
    for name in names:
        place = f"split {name!r} of {source.place!r}"
        image, label = find_columns(tables[name].features, place)
        table = tables[name].select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
        declared = getattr(tables[name].features[label], "names", None)
        splits.append(_split(table, image, label, declared, place, ((place, len(table)),)))
    return splits[0], splits[1] if with_test else None


def _hub_failure(source: Source, error: Exception) -> str:
    import datasets

    fix = f"give a local copy with --data-root DIR, as DIR/{source.name}/{{train,test}}.parquet"
    text = " ".join(str(error).split())[:300].rstrip(".")
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return (
            f"There is no folder {source.name!r}, and the Hugging Face hub has no data set {source.place!r} that you "
            f"may read: {text}. Check the spelling, log in with 'hf auth login' if it is gated, or {fix}."
        )
    network = (
        "Connect to the network (and unset HF_HUB_OFFLINE), or else: " if isinstance(error, ConnectionError) else ""
    )
    return (
        f"There is no folder {source.name!r}, and {source.place!r} could not be had from the Hugging Face hub: "
        f"{type(error).__name__}: {text}. {network}{fix[0].upper()}{fix[1:]}."
    )


def find_columns(features: Any, place: str) -> tuple[str, str]:
    """The names of the image column and of the label column. Raises: DataError if there is not one of each."""
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


def _split(table: Any, image: str, label: str, names: Any, place: str, parts: tuple[tuple[str, int], ...]) -> Split:
    column = table.data.column(label)
    labels: Tensor = torch.from_numpy(column.fill_null(0).to_numpy().copy()).to(torch.int64)
    made = Split(table, labels, tuple(names) if names else None, place, parts, image)
    if column.null_count:
        missing = torch.from_numpy(column.is_null().to_numpy().copy())
        raise DataError(f"{made.row_of(missing)} has no label in column {label!r}. Remove the row or give its class.")
    return made


@contextmanager
def _quiet(always: bool = False) -> Iterator[None]:
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
