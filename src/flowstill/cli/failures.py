"""Failures of the machine rather than of what the user wrote: a full disk, too little memory."""

from __future__ import annotations

import errno

_FIX = {
    errno.ENOSPC: "Make room on the disk.",
    errno.EDQUOT: "Make room, or have your quota raised.",
    errno.EFBIG: "The file is larger than the limit for files, which `ulimit -f` shows.",
    errno.EMFILE: "Too many files are open; `ulimit -n` shows the limit.",
    errno.EROFS: "Choose a folder that can be written to.",
    errno.EACCES: "Choose a folder that you may write to, or change its permissions.",
    errno.EPERM: "Choose a folder that you may write to, or change its permissions.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


def failure_of_machine(error: Exception) -> str | None:
    """One line about a failure of the machine and what to do; None for any other error.

    Args:
        error: what was raised; its notes are added.

    Example:
        >>> failure_of_machine(OSError(errno.ENOSPC, "No space left on device", "run/state.pt"))
        "'run/state.pt': No space left on device. Make room on the disk."
        >>> failure_of_machine(KeyError("a"))
    """
    if isinstance(error, OSError):
        where = f"{error.filename!r}: " if error.filename is not None else ""
        said = f"{where}{(error.strerror or str(error) or type(error).__name__).rstrip('.')}."
        text = f"{said} {_FIX.get(error.errno or 0, '')}".rstrip()
    elif _lacks_memory(error):
        said = (str(error).strip() or "the memory is full").split("\n")[0].rstrip(".")
        text = f"Out of memory: {said}. Use a smaller data.batch, or split each batch with data.accumulate."
    else:
        return None
    return " ".join([text, *getattr(error, "__notes__", ())])


def _lacks_memory(error: Exception) -> bool:
    """Whether memory ran out, in Python, in torch on the CPU or on a GPU."""
    text = str(error).lower()
    said = "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and said)
