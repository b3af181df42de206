"""A folder for each class, with image files in it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch

from flowstill.data.reader import Reader, Source, Wanted, no_test_split, register_reader
from flowstill.data.splits import Split, file_split
from flowstill.errors import DataError, did_you_mean

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@register_reader("folder")
class Folder(Reader):
    """``train/<class>/**/*.png`` and the same in ``test/``; hidden files and files of other types are skipped."""

    about = "train/<class>/ with images"
    order: ClassVar[int] = 2

    def folders(self, name: str) -> tuple[str, ...]:
        """Where ImageNet's archive unpacks."""
        return ("ILSVRC/Data/CLS-LOC", "ILSVRC2012") if name == "imagenet" else ()

    def find(self, folder: Path, wanted: Wanted) -> Source | None:
        """The set with a folder ``train``.

        Raises:
            DataError: a test folder is wanted and missing.
        """
        if not (folder / "train").is_dir():
            return None
        test = [path for name in wanted.tests if (path := folder / name).is_dir()][:1]
        if not test and wanted.with_test:
            raise no_test_split(folder, "test/<class>/ with images")
        return self.source(folder, wanted, (folder / "train",), tuple(test))

    def read(self, source: Source) -> tuple[Split, Split | None]:
        """Training and test images.

        Raises:
            DataError: their classes differ.
        """
        train = _split(source.train[0])
        if not source.with_test:
            return train, None
        test = _split(source.test[0])
        for one, other in ((test, train), (train, test)):
            for name in one.class_names or ():
                if name not in (other.class_names or ()):
                    raise DataError(
                        f"Train and test have different classes: {one.place} has {name!r}, {other.place} does not. "
                        f"{did_you_mean(name, other.class_names or ())}".rstrip()
                    )
        return train, test


def _split(folder: Path) -> Split:
    """The images in ``FOLDER/<class>/``.

    Raises:
        DataError: there is no folder for any class.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{str(folder)!r} has no folder for any class. Sort its images into {folder.name}/<class>/.")
    files = [(path, label) for label, name in enumerate(names) for path in _image_files(folder / name)]
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    return file_split([path for path, _ in files], labels, tuple(names), repr(str(folder)))


def _image_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_FILES and not p.name.startswith("."))
