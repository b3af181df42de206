"""Layouts of archives that unpack into files of fixed names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flowstill.data.reader import Files, Reader, Source, Wanted, listing
from flowstill.errors import DataError


@dataclass(frozen=True)
class Layout:
    """Into which files the archive of one known set unpacks.

    Attributes:
        folders: where the files lie below the data set's folder or the data root.
        train: patterns of the names of the training set's files, which must all be there.
        test: the same for the test set.
    """

    folders: tuple[str, ...]
    train: tuple[str, ...]
    test: tuple[str, ...] = ()


class Archive(Reader):
    """A reader of files with fixed names.

    Attributes:
        layouts: the known sets that come in this format. Under any other name, a folder may have any of them.
    """

    layouts: ClassVar[Mapping[str, Layout]] = {}

    def folders(self, name: str) -> tuple[str, ...]:
        """Where the archive of ``name`` unpacks."""
        return self.layouts[name].folders if name in self.layouts else ()

    def expects(self, name: str) -> str:
        """The first file of the training set."""
        return self.layouts[name].train[0] if name in self.layouts else ""

    def find(self, folder: Path, wanted: Wanted) -> Source | None:
        """The files of a known set if any of its training files is there; of another set, if all of them are."""
        known = wanted.name in self.layouts
        for layout in [self.layouts[wanted.name]] if known else self.layouts.values():
            found = [find_file(folder, pattern) is not None for pattern in layout.train]
            if any(found) if known else all(found):
                test = _all_files(folder, layout.test) if wanted.with_test else ()
                return self.source(folder, wanted, _all_files(folder, layout.train), test)
        return None


def find_file(folder: Path, pattern: str) -> Path | None:
    """The file of that name; of several that match (unpacked and packed) the one with the shortest name."""
    found = [path for path in folder.glob(pattern) if path.is_file()]
    return min(found, key=lambda path: (len(path.name), path.name)) if found else None


def _all_files(folder: Path, patterns: tuple[str, ...]) -> Files:
    """A file for each pattern.

    Raises:
        DataError: one is missing; the text names the first.
    """
    files = []
    for pattern in patterns:
        file = find_file(folder, pattern)
        if file is None:
            raise DataError(
                f"{str(folder)!r} has no file {pattern!r}. Unpack the set's own archive again. "
                f"It holds {listing(folder)}."
            )
        files.append(file)
    return tuple(files)
