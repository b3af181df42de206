"""Parquet files, as the Hugging Face hub keeps them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar

from flowstill.data.reader import Files, Reader, Source, Wanted, no_test_split, register_reader
from flowstill.data.splits import Split
from flowstill.data.tables import find_columns, quiet, table_split
from flowstill.errors import DataError

IN_MEMORY = 4 * 2**30  # bytes: parquet files above it go through datasets' cache on disk


@register_reader("parquet")
class Parquet(Reader):
    """``train.parquet`` or shards ``train-*.parquet``, and the same for test; in the folder, or in the one inside it."""

    about = "train.parquet or train-*.parquet"
    order: ClassVar[int] = 1

    def find(self, folder: Path, wanted: Wanted) -> Source | None:
        """The files of both splits.

        Raises:
            DataError: test files are wanted and missing, or several sets are there.
        """
        base = _holding(folder)
        if base is None:
            return None
        test = next((files for name in wanted.tests if (files := _files(base, name))), ())
        if not test and wanted.with_test:
            raise no_test_split(base, "test.parquet")
        return self.source(base, wanted, _files(base, "train"), test)

    def read(self, source: Source) -> tuple[Split, Split | None]:
        """Training and test images.

        Up to 4 GiB they are held in memory and leave nothing on disk; above, ``datasets`` converts them once into its
        cache (``HF_DATASETS_CACHE``), for random access.

        Raises:
            DataError: a file cannot be read, or has no image or label column.
        """
        test = _split(source.test) if source.with_test else None
        return _split(source.train), test


def _holding(folder: Path) -> Path | None:
    """``folder``, or the one folder in it (``data/``, ``plain_text/``), that holds the training set."""
    if _files(folder, "train"):
        return folder
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and _files(path, "train")]
    if len(inner) > 1:
        names = " and ".join(repr(path.name) for path in inner[:3])
        raise DataError(f"{str(folder)!r} holds several data sets, in {names}. Give the folder of one of them.")
    return inner[0] if inner else None


def _files(folder: Path, split: str) -> Files:
    """``FOLDER/train.parquet``, or all shards ``FOLDER/train-*.parquet``."""
    whole = folder / f"{split}.parquet"
    return (whole,) if whole.is_file() else tuple(sorted(folder.glob(f"{split}-*.parquet")))


def _split(files: Files) -> Split:
    import datasets
    import pyarrow.parquet

    parts, schema = [], None
    for file in files:
        try:
            schema = schema or pyarrow.parquet.read_schema(file)
            parts.append((repr(str(file)), pyarrow.parquet.read_metadata(file).num_rows))
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{str(file)!r} is not a readable parquet file ({error}). Download it again.") from None
    place = parts[0][0] if len(parts) == 1 else repr(str(files[0].parent))
    if not any(rows for _, rows in parts):
        raise DataError(f"{place} holds no images.")
    found = datasets.Features.from_arrow_schema(schema)
    image, label = find_columns(found, place)
    wanted = datasets.Features({image: datasets.Image(decode=False), label: datasets.Value("int64")})
    small = sum(file.stat().st_size for file in files) <= IN_MEMORY
    with tempfile.TemporaryDirectory() as scratch, quiet(always=small):
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
                f"{place} cannot be read, with images in {image!r} and labels in {label!r}: {reason}. Download it again."
            ) from None
    return table_split(table, image, label, getattr(found[label], "names", None), place, tuple(parts))
