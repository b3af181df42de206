"""Where a data set lies: built in, in a folder, or on the Hugging Face hub. Looks at names of files only."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flowstill.data.layouts import LAYOUTS, Layout, find_file
from flowstill.data.named import NAMED
from flowstill.data.spec import DISTORTED, Data
from flowstill.errors import DataError, did_you_mean

TESTS = ("test", "validation", "val", "valid")  # what the test split may be called, the likeliest first
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """Where the images are. name: as given, or of the set that it is made from. place: a folder or a hub name.

    train and test: files, or folders of classes; empty where they are not local. tests: what the test split may be
    called, the likeliest first.
    """

    kind: Literal["digits", "folder", "parquet", "cifar", "idx", "cub", "hub"]
    name: str
    place: str
    train: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    tests: tuple[str, ...] = TESTS


def find_source(spec: Data) -> Source:
    """Where ``spec``'s images are. Opens no file and does not reach for the hub.

    Raises: DataError if a folder is missing or holds no data set, or if the name is a misspelt one.
    """
    if spec.name in DISTORTED:
        spec = replace(spec, name=DISTORTED[spec.name], distortion=None, noise_sigma=None)
    named = NAMED.get(spec.name)
    if named is None:
        return _unnamed(spec)
    if named.hub is None:
        return Source("digits", spec.name, spec.name)
    tests = tuple(dict.fromkeys((*named.tests, *TESTS)))
    if spec.root is None:
        return Source("hub", spec.name, named.hub, tests=tests)
    root = _folder(Path(spec.root).expanduser())
    inner = root / spec.name
    return _known(inner if inner.is_dir() else root, tests, spec)


def _known(base: Path, tests: tuple[str, ...], spec: Data) -> Source:
    """A known set below ``base``: as its archive unpacks, as parquet files, or a folder for each class."""
    layout = LAYOUTS.get(spec.name, Layout())
    places = [path for path in (*(base / folder for folder in layout.folders), base) if path.is_dir()]
    for place in places:
        if layout.begins_in(place):
            test = () if spec.hold_out else _all_files(place, layout.test)
            return Source(layout.kind, spec.name, str(place), _all_files(place, layout.train), test)
    holding = (place for place in places if (place / "train").is_dir() or _parquet_folder(place))
    return _in_folder(next(holding, base), tests, spec)


def _all_files(folder: Path, patterns: tuple[str, ...]) -> tuple[Path, ...]:
    """A file for each pattern. Raises: DataError naming the first that is missing."""
    files = []
    for pattern in patterns:
        file = find_file(folder, pattern)
        if file is None:
            raise DataError(
                f"{str(folder)!r} has no file {pattern!r}. Unpack the set's own archive anew. "
                f"It holds {_listing(folder)}."
            )
        files.append(file)
    return tuple(files)


def _unnamed(spec: Data) -> Source:
    given = Path(spec.name).expanduser()
    candidates = [given] if spec.root is None else [given, Path(spec.root).expanduser() / given]
    for path in candidates:
        if path.is_file():
            raise DataError(f"Data set {spec.name!r} is a file. Give the folder that holds it: {str(path.parent)!r}.")
        if path.is_dir():
            return _in_folder(path, TESTS, spec)
    near = difflib.get_close_matches(spec.name.lower(), NAMED, n=1, cutoff=0.75)
    if near:
        raise DataError(
            f"Unknown data set {spec.name!r}: no known name, and no such folder. Did you mean {near[0]!r}? "
            "(A set of the Hugging Face hub is named by owner/name.)"
        )
    if spec.root is not None or not HUB_NAME.fullmatch(spec.name):
        _folder(candidates[-1])
    return Source("hub", spec.name, spec.name)


def _folder(path: Path) -> Path:
    """``path`` itself. Raises: DataError that names the part of it that is missing, and its neighbours."""
    if path.is_dir():
        return path
    if path.exists():
        raise DataError(f"Data folder {str(path)!r} is a file. Give the folder that holds it: {str(path.parent)!r}.")
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    beside = [entry.name for entry in missing.parent.iterdir() if entry.is_dir()] if missing.parent.is_dir() else []
    part = "" if missing == path else f" ({str(missing)!r} is missing)"
    known = f"Known data sets: {', '.join(NAMED)}."
    said = (f"Data folder {str(path)!r} does not exist{part}.", did_you_mean(missing.name, beside), known)
    raise DataError(" ".join(filter(None, said)))


def _in_folder(folder: Path, tests: tuple[str, ...], spec: Data) -> Source:
    """The splits of a folder: parquet files, or a folder for each class."""
    base = _parquet_folder(folder)
    if base is None and not (folder / "train").is_dir():
        own = "".join(f", nor {name}" for name in LAYOUTS.get(spec.name, Layout()).train[:1])
        raise DataError(
            f"{str(folder)!r} holds no data set {spec.name!r}: there is neither train.parquet, nor train-*.parquet, "
            f"nor train/<class>/ with images{own}. It holds {_listing(folder)}."
        )
    for name in tests:
        test = _parquet(base, name) if base else tuple(path for path in [folder / name] if path.is_dir())
        if test:
            break
    if not test and not spec.hold_out:
        wanted = "test.parquet" if base else "test/<class>/ with images"
        raise DataError(
            f"{str(base or folder)!r} has training images but no test split. Add {wanted}, or set 'hold_out' to test "
            f"on so many of the training images. It holds {_listing(base or folder)}."
        )
    if base:
        return Source("parquet", spec.name, str(base), _parquet(base, "train"), test, tests)
    return Source("folder", spec.name, str(folder), (folder / "train",), test, tests)


def _parquet_folder(folder: Path) -> Path | None:
    """``folder``, or the one folder in it (``data/``, ``plain_text/``), that holds the training set as parquet."""
    if _parquet(folder, "train"):
        return folder
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and _parquet(path, "train")]
    if len(inner) > 1:
        names = " and ".join(repr(path.name) for path in inner[:3])
        raise DataError(f"{str(folder)!r} holds several data sets, in {names}. Give the folder of one of them.")
    return inner[0] if inner else None


def _parquet(folder: Path, split: str) -> tuple[Path, ...]:
    """``FOLDER/train.parquet``, or all shards ``FOLDER/train-*.parquet``."""
    whole = folder / f"{split}.parquet"
    return (whole,) if whole.is_file() else tuple(sorted(folder.glob(f"{split}-*.parquet")))


def _listing(folder: Path) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    if not names:
        return "nothing"
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
