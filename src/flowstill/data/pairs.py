"""Splits from lists of images and labels, as a user's reader gives them."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowstill.data.reader import Source, no_test_split
from flowstill.data.splits import Encoded, Split, encode_array, images_split
from flowstill.errors import DataError, did_you_mean

Label = int | str


def splits_of_pairs(found: Any, source: Source) -> tuple[Split, Split | None]:
    """Training and test images from what a reader's function returned.

    Args:
        found: two lists of (image, label), or two ``Split``; the second may be None.
        source: the reader and the folder, for messages and relative paths.

    Raises:
        DataError: something else, naming the pair.
    """
    who = f"Data reader {source.reader!r}"
    if not isinstance(found, tuple) or len(found) != 2:
        raise DataError(f"{who}: expected two lists (train, test). Received: {_kind(found)}.")
    train, test = found
    if test is None and source.with_test:
        raise no_test_split(Path(source.place), f"test images to what reader {source.reader!r} returns")
    parts = {"train": train} | ({"test": test} if source.with_test else {})
    names = _class_names(parts, who)
    splits = {key: part if isinstance(part, Split) else _split(part, key, names, source) for key, part in parts.items()}
    return splits["train"], splits.get("test")


def _class_names(parts: dict[str, Any], who: str) -> tuple[str, ...] | None:
    """The sorted names of the training images' classes; None if labels are numbers. Checks all pairs."""
    named: set[bool] = set()
    for key, part in parts.items():
        if isinstance(part, Split):
            continue
        if not isinstance(part, Sequence) or isinstance(part, (str, bytes)):
            raise DataError(f"{who}: expected a list of (image, label) as {key}. Received: {_kind(part)}.")
        for place, pair in enumerate(part):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not _is_label(pair[1]):
                raise DataError(
                    f"{who}: expected (image, label) as item {place} of {key}, the label a class number or a name. "
                    f"Received: {pair!r:.200}."
                )
            named.add(isinstance(pair[1], str))
    if len(named) > 1:
        raise DataError(f"{who}: some labels are numbers, some are names. Give all as numbers or all as names.")
    if not named or not named.pop() or isinstance(parts["train"], Split):
        return None
    return tuple(sorted({label for _, label in parts["train"]}))


def _is_label(label: Any) -> bool:
    return isinstance(label, (int, np.integer, str)) and not isinstance(label, bool)


def _split(pairs: Sequence[tuple[Any, Label]], key: str, names: tuple[str, ...] | None, source: Source) -> Split:
    place = f"the {key} split that reader {source.reader!r} made of {source.place!r}"
    images = [_encoded(image, Path(source.place), f"item {row} of {place}") for row, (image, _) in enumerate(pairs)]
    labels = [_number(label, names, f"Item {row} of {place}") for row, (_, label) in enumerate(pairs)]
    files = all(image["bytes"] is None for image in images)
    return images_split(
        images, torch.tensor(labels, dtype=torch.int64), names, place, () if files else ((place, len(pairs)),)
    )


def _number(label: Label, names: tuple[str, ...] | None, where: str) -> int:
    if isinstance(label, str):
        if label not in (names or ()):
            raise DataError(
                f"{where} has class {label!r}, of which there is no training image. "
                f"{did_you_mean(label, names or ())}".rstrip()
            )
        return (names or ()).index(label)
    return int(label)


def _encoded(image: Any, folder: Path, where: str) -> Encoded:
    """A file's path, or the bytes of an image file without loss."""
    from PIL import Image

    if isinstance(image, (str, os.PathLike)):
        return {"bytes": None, "path": str(folder / Path(image))}
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and (image.ndim == 2 or image.shape[2:] == (3,)):
        return encode_array(image)
    raise DataError(
        f"Expected a path, a Pillow image, or a uint8 array (H, W) or (H, W, 3) as {where}. Received: {_kind(image)}."
    )


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, {value.shape}"
    return "nothing" if value is None else f"a {type(value).__name__}"
