"""CUB-200-2011 as its archive unpacks (Wah et al. 2011): photographs, and text files that say what they are."""

from __future__ import annotations

from pathlib import Path

import torch

from flowstill.data.locate import Source
from flowstill.data.splits import Split, file_split
from flowstill.errors import DataError

SPLITS = ("0", "1")  # what train_test_split.txt says of test and training images


def cub_splits(source: Source, *, with_test: bool = True) -> tuple[Split, Split | None]:
    """Training and test images: ``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt``, ``images/``.

    The species' names come from ``classes.txt`` where it is there. Raises: DataError naming the file and its line.
    """
    folder = Path(source.place)
    paths = _table(folder / "images.txt")
    species = _column(folder / "image_class_labels.txt", paths)
    parts = _column(folder / "train_test_split.txt", paths)
    classes = _table(folder / "classes.txt") if (folder / "classes.txt").is_file() else {}
    numbers = {str(number): number - 1 for number in range(1, (len(classes) or len(paths)) + 1)}
    for image, (number, part) in {image: (species[image], parts[image]) for image in paths}.items():
        if number not in numbers:
            raise DataError(
                f"Image {image} ({paths[image]}) of {str(folder / 'image_class_labels.txt')!r} has class {number!r}; "
                f"classes are numbered from 1 to {len(numbers)}. Unpack the set's own archive anew."
            )
        if part not in SPLITS:
            raise DataError(
                f"Image {image} ({paths[image]}) of {str(folder / 'train_test_split.txt')!r} is marked {part!r}, not 1 "
                "(training) or 0 (test). Unpack the set's own archive anew."
            )
    if set(classes) - set(numbers):
        raise DataError(f"{str(folder / 'classes.txt')!r} does not number its classes from 1 to {len(classes)}.")
    names = tuple(classes[number] for number in numbers) if classes else None

    def split(mark: str, name: str) -> Split:
        chosen = [image for image in paths if parts[image] == mark]
        files = [folder / "images" / paths[image] for image in chosen]
        labels = torch.tensor([numbers[species[image]] for image in chosen], dtype=torch.int64)
        return file_split(files, labels, names, f"the {name} split of {str(folder)!r}")

    return split("1", "training"), split("0", "test") if with_test else None


def _table(file: Path) -> dict[str, str]:
    """Lines of a number, a space and what belongs to it."""
    table = {}
    for place, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        number, _, value = line.strip().partition(" ")
        if not value or number in table:
            what = "is no number and its value" if not value else f"gives {number} a second time"
            raise DataError(f"Line {place} of {str(file)!r}, {line[:60]!r}, {what}. Unpack the set's own archive anew.")
        table[number] = value
    return table


def _column(file: Path, images: dict[str, str]) -> dict[str, str]:
    """What a file says of each of the images."""
    table = _table(file)
    missing = next((image for image in images if image not in table), None)
    if missing is not None:
        raise DataError(f"{str(file)!r} says nothing of image {missing} ({images[missing]}). Unpack the archive anew.")
    return table
