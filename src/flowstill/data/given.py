"""What a user gives as the data set: a name or a folder, or by mistake the images themselves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowstill.data.reader import TESTS
from flowstill.errors import DataError

FORMS = (
    "Images are read from a folder of classes (train/CLASS/*.jpg and test/CLASS/*.jpg), from parquet files "
    "(train.parquet and test.parquet), or by the name of a data set (see `flowstill list data`) or of one on the Hugging "
    "Face hub (owner/name). For any other form, register a reader with flowstill.register_reader."
)
_PLAIN = (str, bytes, int, float, list, tuple, Mapping, type(None))  # what a recipe file can hold


def set_name(value: Any) -> str:
    """The name or folder of a data set, given as text or as a path.

    Raises:
        DataError: something else, such as a Dataset of torch.
    """
    if isinstance(value, (str, os.PathLike)):
        return str(os.fspath(value))
    what = "nothing" if value is None else f"a {type(value).__name__}"
    raise DataError(f"Expected the name or the folder of a data set. Received: {what}. {_folder_of(value)}{FORMS}")


def refuse_images(value: Any) -> Any:
    """The value itself, unless it is an object that could hold images.

    Raises:
        DataError: it is.
    """
    if isinstance(value, (*_PLAIN, os.PathLike)) or hasattr(value, "__pydantic_fields__"):
        return value
    return set_name(value)


def _folder_of(value: Any) -> str:
    """A sentence that names the folder which an ``ImageFolder`` reads; empty for anything else."""
    root = getattr(value, "root", None)
    if not isinstance(root, (str, os.PathLike)) or not hasattr(value, "samples"):
        return ""
    folder = Path(root)
    whole = folder.parent if folder.name in ("train", *TESTS) else folder
    return f"Give its folder instead: {str(whole)!r}. "
