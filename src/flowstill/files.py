"""Files that are either wholly there or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module's name may not be None; whoever uses it asks first


def atomic_write(path: str | Path, data: bytes | Callable[[Path], None]) -> None:
    """Put ``data`` at ``path`` so that a reader, or a power cut, sees the old file or the new one, never a part.

    The bytes go to a hidden temporary file in the same folder, reach the disk (fsync), and take the name in one step.
    The folder must exist.

    data: the bytes, or a function that writes the file whose path it is given.
    Raises: OSError, as ``open`` does; whatever ``data`` raises. The temporary file is gone either way.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     atomic_write(Path(folder, "note"), b"all of it")
    ...     os.listdir(folder)
    ['note']
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        if callable(data):
            data(partial)
        else:
            partial.write_bytes(data)
        _to_disk(partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    if os.name != "nt":  # Windows opens no folders
        _to_disk(target.parent)


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Hold ``folder`` against other processes that ask the same way; gives False if one of them holds it.

    The hold ends with the process, however that ends. Where the system knows no such locks, everybody is let in.
    """
    if fcntl is None:
        yield True
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
