"""The state to resume from: one file and the one before it, each with a checksum of its bytes at its end."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from pathlib import Path
from typing import IO, Any, cast

from flowstill.errors import RunError, option
from flowstill.files import atomic_write

STATE, PREVIOUS = "state.pt", "state-previous.pt"
_MARK, _DIGEST = b"flowstill sha256 ", 32  # a file ends with this mark and the digest of all bytes before both
_ZIP_END, _ZIP_END_SIZE = b"PK\x05\x06", 22  # how files of earlier versions end; they have no checksum


# What a state holds, besides what the stage in progress needs to continue.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "summary": str,
    "metrics": int,
    "group": list,
    "stage": int,
    "seconds": (int, float),
    "rng": list,
}


class _Summed(io.RawIOBase):
    """A file that hashes what is written to it, and keeps the original error, which torch would replace by its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        return memoryview(data).nbytes


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the state; the last one is kept as ``PREVIOUS``. A kill leaves at least one of them whole.

    Raises:
        OSError: the file cannot be written; the last state is untouched.
    """
    import torch

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            summed = _Summed(file)
            try:
                torch.save(state, cast(IO[bytes], summed))
            except RuntimeError:
                if summed.error:
                    raise summed.error from None
                raise
            file.write(_MARK + summed.digest.digest())

    atomic_write(folder / STATE, write, replaced=folder / PREVIOUS)


def drop_state(folder: Path) -> None:
    """Remove the state of a finished run; the older first, so that it is never the only one."""
    for name in (PREVIOUS, STATE):
        (folder / name).unlink(missing_ok=True)


def load_state(folder: Path, *, lazy: bool = False) -> dict[str, Any] | None:
    """Read the last state that is whole, on the CPU.

    Args:
        folder: the run's folder.
        lazy: leave its tensors on the disk until they are used.

    Returns:
        The state; None if there is none.

    Raises:
        RunError: the states are damaged, or hold something that would run code.
    """
    reasons = {}
    for path in states_in(folder):
        try:
            return _read(path, lazy)
        except ValueError as error:
            reasons[path] = str(error)
    if not reasons:
        return None
    listed = "; so is ".join(f"{str(path)!r}: it is damaged, {reason}" for path, reason in reasons.items())
    names = " and ".join(repr(path.name) for path in reasons)
    raise RunError(
        f"Cannot resume from {listed}. Restore it from a copy; or delete {names} and resume: finished jobs keep their "
        "networks, and the job in progress starts over."
    )


def states_in(folder: Path) -> list[Path]:
    """The states that are there, the newest first."""
    return [path for path in (folder / STATE, folder / PREVIOUS) if path.exists()]


def damage(path: Path) -> str | None:
    """Why a state cannot be used; None if it can."""
    try:
        _read(path, lazy=True)
    except ValueError as error:
        return str(error)
    return None


def check_content(state: dict[str, Any], folder: Path, run: str | None) -> None:
    """Check that a state is of this run and holds what it needs of it.

    Args:
        state: as it was read.
        folder: the run's folder.
        run: the run's ``id``; None in runs of earlier versions.

    Raises:
        RunError: it is of another run, or something is missing, or of another type.
    """
    if run is not None and state.get("run", run) != run:
        raise RunError(
            f"Cannot resume from {str(folder / STATE)!r}: it belongs to another run. Restore it from a copy, or "
            f"give another {option('out')}."
        )
    loop = state.get("loop")
    step = loop.get("step") if isinstance(loop, dict) else None
    wrong = [name for name, kind in _KINDS.items() if not isinstance(state.get(name), kind)]
    if not wrong and state["group"] and not isinstance(step, int):
        wrong = ["loop"]
    if not wrong and not all(isinstance(job, str) for job in state["group"]):
        wrong = ["group"]
    if not wrong and not math.isfinite(state["seconds"]):
        wrong = ["seconds"]
    if wrong:
        held = f"of type {type(state[wrong[0]]).__name__}" if wrong[0] in state else "missing"
        raise RunError(
            f"Cannot resume from {str(folder / STATE)!r}: {wrong[0]!r} is {held}. The file is not a run's state, or was "
            f"written by another version of flowstill. Restore it from a copy, or give another {option('out')}."
        )


def _read(path: Path, lazy: bool) -> dict[str, Any]:
    """Raises: ValueError if the file is damaged or holds more than plain data; the text says how."""
    import torch

    try:
        _check_sum(path)
    except OSError as error:
        raise ValueError(f"and cannot be read ({error.strerror})") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of odd pickles before it refuses them
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)
    except MemoryError:
        raise
    except Exception as error:  # a broken file can raise anything; none of it runs code
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(f"or holds more than plain tensors ({reason})") from None
    if not isinstance(state, dict):
        raise ValueError(f"expected a dict, received: {type(state).__name__}")
    return state


def _check_sum(path: Path) -> None:
    """Raises: ValueError if the bytes differ from what was written."""
    end = len(_MARK) + _DIGEST
    with path.open("rb") as file:
        length = file.seek(0, io.SEEK_END)
        file.seek(max(0, length - end))
        tail = file.read()
        if tail[-_ZIP_END_SIZE:].startswith(_ZIP_END):
            return  # written before there were checksums
        if not tail.startswith(_MARK):
            raise ValueError("its end is missing")
        file.seek(0)
        digest, left = hashlib.sha256(), length - end
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    if digest.digest() != tail[len(_MARK) :]:
        raise ValueError("its checksum differs")
