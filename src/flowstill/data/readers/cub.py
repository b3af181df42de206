"""CUB-200-2011 as its archive unpacks (Wah et al. 2011): photographs, and text files that say what they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch

from flowstill.data.archives import Archive, Layout
from flowstill.data.reader import Source, register_reader
from flowstill.data.splits import Split, file_split
from flowstill.errors import DataError

SPLITS = ("0", "1")  # what train_test_split.txt says of test and training images
UNPACK = "Unpack the set's own archive again."


@register_reader("cub")
class Cub(Archive):
    """Photographs in ``images/``, listed in ``images.txt``; the species' names come from ``classes.txt``, if present."""

    about = "CUB-200-2011: images.txt, image_class_labels.txt, train_test_split.txt and images/"
    layouts: ClassVar[Mapping[str, Layout]] = {
        "cub200": Layout(("CUB_200_2011",), ("images.txt", "image_class_labels.txt", "train_test_split.txt"))
    }

    def read(self, source: Source) -> tuple[Split, Split | None]:
        """Training and test images.

        Raises:
            DataError: a file is damaged; the text names it and the line.
        """
        folder = Path(source.place)
        paths = _table(folder / "images.txt")
        parts = _column(folder / "train_test_split.txt", paths)
        species = _column(folder / "image_class_labels.txt", paths)
        classes = _table(folder / "classes.txt") if (folder / "classes.txt").is_file() else {}
        numbers = _numbers(folder, paths, species, classes)
        _check_parts(folder, paths, parts)
        names = tuple(classes[number] for number in numbers) if classes else None

        def split(mark: str, name: str) -> Split:
            chosen = [image for image in paths if parts[image] == mark]
            files = [folder / "images" / paths[image] for image in chosen]
            labels = torch.tensor([numbers[species[image]] for image in chosen], dtype=torch.int64)
            return file_split(files, labels, names, f"the {name} split of {str(folder)!r}")

        return split("1", "training"), split("0", "test") if source.with_test else None


def _numbers(folder: Path, paths: dict[str, str], species: dict[str, str], classes: dict[str, str]) -> dict[str, int]:
    """The label, from 0, of each class number, from 1.

    Raises:
        DataError: a number is out of range.
    """
    numbers = {str(number): number - 1 for number in range(1, (len(classes) or len(paths)) + 1)}
    for image in paths:
        if species[image] not in numbers:
            raise DataError(
                f"Image {image} ({paths[image]}) of {str(folder / 'image_class_labels.txt')!r} has class "
                f"{species[image]!r}; expected a number from 1 to {len(numbers)}. {UNPACK}"
            )
    if set(classes) - set(numbers):
        raise DataError(
            f"{str(folder / 'classes.txt')!r} does not number its classes from 1 to {len(classes)}. {UNPACK}"
        )
    return numbers


def _check_parts(folder: Path, paths: dict[str, str], parts: dict[str, str]) -> None:
    for image in paths:
        if parts[image] not in SPLITS:
            raise DataError(
                f"Image {image} ({paths[image]}) of {str(folder / 'train_test_split.txt')!r} is marked "
                f"{parts[image]!r}; expected 1 (training) or 0 (test). {UNPACK}"
            )


def _table(file: Path) -> dict[str, str]:
    """Each line's number, and the text after it."""
    table = {}
    for place, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        number, _, value = line.strip().partition(" ")
        if not value or number in table:
            what = "is not a number and a value" if not value else f"gives {number} a second time"
            raise DataError(f"Line {place} of {str(file)!r}, {line[:60]!r}, {what}. {UNPACK}")
        table[number] = value
    return table


def _column(file: Path, images: dict[str, str]) -> dict[str, str]:
    """A file's value for each of the images."""
    table = _table(file)
    missing = next((image for image in images if image not in table), None)
    if missing is not None:
        raise DataError(f"{str(file)!r} has no line for image {missing} ({images[missing]}). {UNPACK}")
    return table
