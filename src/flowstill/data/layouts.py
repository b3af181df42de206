"""How the archives of known data sets unpack: into which folders, with which files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Layout:
    """One archive's layout. kind: "cifar", "idx" and "cub" have readers of their own; "folder" is one of classes.

    folders: where it lies below the data set's folder or the data root. train, test: patterns of the files' names, of
    which all must be there.
    """

    kind: Literal["folder", "cifar", "idx", "cub"] = "folder"
    folders: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def begins_in(self, folder: Path) -> bool:
        """Whether any file of the training set is there."""
        return any(find_file(folder, pattern) for pattern in self.train)


LAYOUTS = {
    "cifar10": Layout(
        "cifar", ("cifar-10-batches-py",), tuple(f"data_batch_{number}" for number in range(1, 6)), ("test_batch",)
    ),
    "cifar100": Layout("cifar", ("cifar-100-python",), ("train",), ("test",)),
    "mnist": Layout(
        "idx",
        ("MNIST/raw", "raw", "MNIST"),
        ("train-images[-.]idx3-ubyte*", "train-labels[-.]idx1-ubyte*"),
        ("t10k-images[-.]idx3-ubyte*", "t10k-labels[-.]idx1-ubyte*"),
    ),
    "cub200": Layout("cub", ("CUB_200_2011",), ("images.txt", "image_class_labels.txt", "train_test_split.txt")),
    "imagenet": Layout("folder", ("ILSVRC/Data/CLS-LOC", "ILSVRC2012")),
}


def find_file(folder: Path, pattern: str) -> Path | None:
    """The file of that name; of several that match (unpacked and packed) the one with the shortest name."""
    found = [path for path in folder.glob(pattern) if path.is_file()]
    return min(found, key=lambda path: (len(path.name), path.name)) if found else None
