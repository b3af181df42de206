"""Readers of data sets, by name: each knows one layout of files, and reads its training and test images."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from flowstill.errors import DataError
from flowstill.schema.code import run_code
from flowstill.schema.registry import Registry

if TYPE_CHECKING:
    from flowstill.data.splits import Split

Files = tuple[Path, ...]
TESTS = ("test", "validation", "val", "valid")  # what the test split may be called, the likeliest first


@dataclass(frozen=True)
class Wanted:
    """What is looked for in a folder.

    Attributes:
        name: the data set, as the recipe names it.
        tests: what its test split may be called, the likeliest first.
        with_test: whether test images are needed; not where some training images are held out instead.
        by_reader: whether the recipe names the reader, so that the layout need not be recognised.
    """

    name: str
    tests: tuple[str, ...] = TESTS
    with_test: bool = True
    by_reader: bool = False


@dataclass(frozen=True)
class Source:
    """Where a reader found a data set.

    Attributes:
        reader: name of the reader.
        name: the data set, as the recipe names it, or the set that it is made from.
        place: a folder, or a name on the Hugging Face hub.
        train: files or folders of the training images; empty where the reader needs none.
        test: files or folders of the test images.
        tests: what the test split may be called, the likeliest first.
        with_test: whether test images are needed.
    """

    reader: str
    name: str
    place: str
    train: Files = ()
    test: Files = ()
    tests: tuple[str, ...] = TESTS
    with_test: bool = True


class Reader:
    """One layout of a data set. A subclass is registered by ``@register_reader(NAME)``.

    Attributes:
        name: the name that it is registered by.
        about: one line.
        local: whether it reads a folder. If not, recipes reach it by name alone.
        order: readers with smaller numbers are asked first; of the same number, the last registered.
    """

    name: str = ""
    about: str = ""
    local: ClassVar[bool] = True
    order: ClassVar[int] = 0

    def folders(self, name: str) -> tuple[str, ...]:
        """Folders below the data root where the archive of the known set ``name`` unpacks."""
        return ()

    def expects(self, name: str) -> str:
        """The files of this layout, for messages; empty if the known set ``name`` never comes in it."""
        return self.about

    def find(self, folder: Path, wanted: Wanted) -> Source | None:
        """Find the set in ``folder`` by the names of its files, without opening any. None if the layout is another.

        Raises:
            DataError: the folder has this layout, but a part of it is missing.
        """
        return None

    def read(self, source: Source) -> tuple[Split, Split | None]:
        """Read training and test images; no test images unless ``source.with_test``.

        Raises:
            DataError: naming the file, and the row or line in it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define the method read(self, source).")

    def source(self, folder: Path, wanted: Wanted, train: Files = (), test: Files = ()) -> Source:
        """The source of what was found in ``folder``."""
        return Source(self.name, wanted.name, str(folder), train, test, wanted.tests, wanted.with_test)


ReadFolder = Callable[[Path], tuple[Any, Any]]
READERS: Registry[Reader] = Registry("data reader", "flowstill.data.readers", error=DataError)
R = TypeVar("R", bound="type[Reader] | ReadFolder")


def register_reader(
    name: str, *, about: str = "", recognises: Callable[[Path], bool] | None = None
) -> Callable[[R], R]:
    """Let recipes read another layout: ``data: {name: FOLDER}``, or ``data: {name: FOLDER, reader: NAME}``.

    It decorates a function ``read(folder) -> (train, test)``. Each of the two is a list of ``(image, label)`` pairs.
    ``test`` may be None; the recipe must then set ``hold_out``. An image is the path of an image file (absolute, or
    relative to the folder), a Pillow image, or a uint8 array of shape (H, W) or (H, W, 3). A label is a class number
    from 0, or the name of a class; classes are sorted by name. A recipe's ``size``, ``channels``, ``augment`` and so
    on apply as to any other set.

    Args:
        name: what recipes call the reader.
        about: one line: the files that it expects. Error messages show it.
        recognises: says whether a folder has this layout. It is asked before the built-in readers. Without it,
            recipes must name the reader.

    Raises:
        DataError: the name is taken, or what is decorated is no function.

    Example:
        >>> @register_reader("list", about="labels.txt", recognises=lambda folder: (folder / "labels.txt").is_file())
        ... def read(folder):
        ...     lines = (folder / "labels.txt").read_text().splitlines()
        ...     pairs = [tuple(line.split()) for line in lines]  # "cat/1.png cat"
        ...     return pairs[:-100], pairs[-100:]
    """

    def register(value: R) -> R:
        if isinstance(value, type) and issubclass(value, Reader):
            reader: Reader = value()
        elif inspect.isfunction(value):
            reader = _FunctionReader(value, recognises)
        else:
            raise DataError(
                f"Expected a function read(folder) -> (train, test) under @register_reader({name!r}). "
                f"Received: {value!r}."
            )
        reader.name, reader.about = name, about or reader.about
        READERS.add(name, reader, value.__module__)
        return value

    return register


def folder_readers() -> list[Reader]:
    """The readers of folders, in the order in which they are asked."""
    last_first = list(READERS.values())[::-1]
    return sorted((reader for reader in last_first if reader.local), key=lambda reader: reader.order)


def no_test_split(folder: Path, add: str) -> DataError:
    """The error for a folder without test images; ``add`` says what would be them."""
    return DataError(
        f"{str(folder)!r} has training images but no test split. Add {add}, or set 'hold_out' to the number of "
        f"training images to test on instead. It holds {listing(folder)}."
    )


def listing(folder: Path) -> str:
    """The first names in a folder, for messages."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    if not names:
        return "nothing"
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


class _FunctionReader(Reader):
    """A reader made from a user's function."""

    def __init__(self, read: ReadFolder, recognises: Callable[[Path], bool] | None) -> None:
        self._read, self._recognises = read, recognises

    def expects(self, name: str) -> str:
        return (self.about or f"what {self.name!r} reads") if self._recognises else ""

    def find(self, folder: Path, wanted: Wanted) -> Source | None:
        if wanted.by_reader or (self._recognises and self._call(self._recognises, folder)):
            return self.source(folder, wanted)
        return None

    def read(self, source: Source) -> tuple[Split, Split | None]:
        from flowstill.data.pairs import splits_of_pairs  # it imports torch

        return splits_of_pairs(self._call(self._read, Path(source.place)), source)

    def _call(self, function: Callable[[Path], Any], folder: Path) -> Any:
        code = Path(function.__code__.co_filename) if inspect.isfunction(function) else folder
        return run_code(lambda: function(folder), code, f"Data reader {self.name!r} failed", DataError)
