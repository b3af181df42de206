"""The classes of a set, and whether its labels fit them."""

from __future__ import annotations

import torch

from flowstill.data.splits import Split
from flowstill.errors import DataError


def class_names(
    train: Split, test: Split | None, known: int | None = None, called: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """The names of the classes, in the order of their numbers.

    Args:
        train: the training images.
        test: the test images, if any.
        known: the expected number of classes.
        called: names of the classes, for images that come with numbers only.

    Raises:
        DataError: a split is empty, a label is out of range, a class has no training image, or training and test
    images have different classes.
    """
    for split in (train, test):
        if split is not None and len(split) == 0:
            raise DataError(f"{split.place} holds no images.")
    declared = train.class_names or (test.class_names if test is not None else None) or called
    names = declared or tuple(map(str, range(known or _count(train))))
    if known is not None and len(names) != known:
        raise DataError(
            f"{train.place} has {len(names)} classes, not {known}: it is another set. Give its folder as 'name'."
        )
    if test is not None and test.class_names is not None and test.class_names != names:
        raise DataError(_different(train, test, names, test.class_names))
    _check_range(train, names)
    counts = train.labels.bincount(minlength=len(names))
    if test is not None:
        _check_range(test, names, train)
        for label in torch.unique(test.labels).tolist():
            if counts[label] == 0:
                raise DataError(
                    f"Train and test have different classes: {test.row_of(test.labels == label)} has class "
                    f"{names[label]!r} ({label}), of which there is no training image. Remove such rows, or add images."
                )
    empty = [name for name, images in zip(names, counts.tolist(), strict=True) if images == 0]
    if empty:
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise DataError(
            f"Class {empty[0]!r}{more} of {train.place} has no training image. Add some, or remove the class and "
            "number the others from 0 without a gap."
        )
    return names


def _count(train: Split) -> int:
    """The number of classes, from the labels alone."""
    largest = int(train.labels.max())
    if largest >= len(train):
        raise DataError(
            f"{train.row_of(train.labels == largest)} has label {largest}, out of range: {len(train)} images "
            f"cannot fill {largest + 1} classes. Number the classes from 0 without a gap."
        )
    return max(largest, 0) + 1


def _check_range(split: Split, names: tuple[str, ...], train: Split | None = None) -> None:
    wrong = (split.labels < 0) | (split.labels >= len(names))
    if not wrong.any():
        return
    label = int(split.labels[wrong][0])
    what = (
        f"{split.row_of(wrong)} has label {label}, out of range: there are {len(names)} classes, 0 to {len(names) - 1}."
    )
    if train is not None and label >= 0 and train.class_names is None:
        what = f"Train and test have different classes: {what}"
    hint = " Set 'hold_out' if this split has no labels." if train is not None and label == -1 else ""
    raise DataError(f"{what} Correct the label or remove the row.{hint}")


def _different(train: Split, test: Split, trained: tuple[str, ...], tested: tuple[str, ...]) -> str:
    """Which class name differs first."""
    pairs = enumerate(zip(trained, tested, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(trained), len(tested)))

    def at(names: tuple[str, ...]) -> str:
        return repr(names[place]) if place < len(names) else "nothing"

    return (
        f"Train and test have different classes: class {place} is {at(trained)} in {train.place}, {at(tested)} in "
        f"{test.place}. Give both the same classes in the same order."
    )
