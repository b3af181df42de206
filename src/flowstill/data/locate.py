"""Finds where a data set lies: built in, in a folder, or on the Hugging Face hub. Looks at names of files only."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from flowstill.data.named import NAMED
from flowstill.data.reader import READERS, TESTS, Reader, Source, Wanted, folder_readers, listing
from flowstill.data.spec import DISTORTED, Data
from flowstill.errors import DataError, did_you_mean, nearest, option

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def find_source(spec: Data) -> Source:
    """Find ``spec``'s images, and the reader for them. Opens no file and does not contact the hub.

    Raises:
        DataError: a folder is missing or has no layout that is known, or the name or the reader is misspelt.
    """
    if spec.name in DISTORTED:
        spec = replace(spec, name=DISTORTED[spec.name], distortion=None, noise_sigma=None)
    named = NAMED.get(spec.name)
    tests = tuple(dict.fromkeys((*(named.tests if named else ()), *TESTS)))
    reader = spec.reader or (named.reader if named else None)
    wanted = Wanted(spec.name, tests, with_test=spec.hold_out == 0, by_reader=spec.reader is not None)
    chosen = READERS.find(reader) if reader else None
    folder = _base(spec) if chosen is None or chosen.local else None
    if folder is not None:
        return _in_folder(folder, wanted, [chosen] if chosen else folder_readers())
    if chosen is not None and chosen.local:
        raise DataError(f"Reader {reader!r} reads a folder. Give it as {option('data_root', 'DIR')} or as 'name'.")
    hub = named.hub if named else None
    return Source(reader or "hub", spec.name, hub or spec.name, tests=tests, with_test=wanted.with_test)


def _base(spec: Data) -> Path | None:
    """The folder that a recipe names; None if it names a set on the hub.

    Raises:
        DataError: it is missing.
    """
    if spec.name in NAMED:
        if spec.root is None:
            return None
        root = _folder(Path(spec.root).expanduser())
        return root / spec.name if (root / spec.name).is_dir() else root
    given = Path(spec.name).expanduser()
    candidates = [given] if spec.root is None else [given, Path(spec.root).expanduser() / given]
    for path in candidates:
        if path.is_file():
            raise DataError(f"Data set {spec.name!r} is a file. Give the folder that holds it: {str(path.parent)!r}.")
        if path.is_dir():
            return path
    # A set of the hub may be named after a known one, as fashion_mnist is.
    near = [known for known in nearest(spec.name, NAMED) if abs(len(known) - len(spec.name)) <= 2]
    if near:
        raise DataError(
            f"Unknown data set {spec.name!r}: no known name, and no such folder. Did you mean {near[0]!r}? "
            "(A set of the Hugging Face hub is named by owner/name.)"
        )
    if spec.root is not None or spec.reader is not None or not HUB_NAME.fullmatch(spec.name):
        return _folder(candidates[-1])
    return None


def _in_folder(base: Path, wanted: Wanted, readers: list[Reader]) -> Source:
    """The set in ``base``, or in a folder below it where a known set's archive unpacks."""
    below = dict.fromkeys(base / folder for reader in readers for folder in reader.folders(wanted.name))
    for place in (*(path for path in below if path.is_dir()), base):
        for reader in readers:
            if source := reader.find(place, wanted):
                return source
    if wanted.by_reader:
        raise DataError(
            f"{str(base)!r} does not have the layout of reader {readers[0].name!r}: {readers[0].about}. "
            f"It holds {listing(base)}."
        )
    expected = [f"{text} ({reader.name})" for reader in readers if (text := reader.expects(wanted.name))]
    raise DataError(
        f"{str(base)!r} holds no data set {wanted.name!r} in a known layout: expected {', or '.join(expected)}. "
        f"It holds {listing(base)}."
    )


def _folder(path: Path) -> Path:
    """``path`` itself.

    Raises:
        DataError: it is missing; the text names the part of it that is missing, and its neighbours.
    """
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
