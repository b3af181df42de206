"""Files written whole or not at all, and folders locked against other processes."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"  # file that ``alone_in`` locks


def atomic_write(path: str | Path, data: bytes | Callable[[Path], None], *, replaced: str | Path | None = None) -> None:
    """Write ``data`` to ``path`` so that a reader, or a power cut, sees the old file or the new one, never a part.

    The bytes go to a hidden temporary file in the same folder, reach the disk (fsync), and are renamed in one step. The
    temporary file is removed if anything fails.

    Args:
        path: the file; its folder must exist.
        data: the bytes, or a function that writes the file at the path it is given.
        replaced: where the old file is kept. A kill can leave it there, and nothing at ``path``.

    Raises:
        OSError: as ``open`` does; it names ``path``. Whatever else ``data`` raises is passed on.

    Example:
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
        if replaced is not None and target.exists():
            os.replace(target, replaced)
        os.replace(partial, target)
    except OSError as error:
        # A full disk names no file, and nobody knows the temporary one.
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        partial.unlink(missing_ok=True)
    if os.name != "nt":  # Windows cannot open folders
        _to_disk(target.parent)


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Lock ``folder`` against other processes that use this function.

    The lock ends with the process, however it ends. Its file, ``LOCK``, stays in the folder: if it were removed, two
    processes could hold locks on two files of the same name.

    Args:
        folder: an existing folder.

    Yields:
        True while this process holds the lock; False if another one holds it.
    """
    from filelock import FileLock, Timeout  # not needed at start-up

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def digest_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal, as ``sha256sum`` prints it.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def readable_size(size: int) -> str:
    """Format a number of bytes.

    Example:
        >>> readable_size(45_619_200_000), readable_size(5_000)
        ('45.6 GB', '5 kB')
    """
    unit, name = next((unit for unit in ((10**9, "GB"), (10**6, "MB")) if size >= unit[0]), (10**3, "kB"))
    return f"{size / unit:.3g} {name}"
