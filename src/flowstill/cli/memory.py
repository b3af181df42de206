"""Keeps freed memory in the process, for the tensors of the next step."""

from __future__ import annotations

import ctypes
import os
import sys

# From glibc's malloc.h. Blocks of this size and more are mapped separately and returned at once; the largest valid value.
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
LARGEST_THRESHOLD, KEPT = 32 * 2**20, 2**31 - 1  # bytes


def keep_freed_memory() -> bool:
    """Let the C library keep what tensors free, instead of clearing new pages for every step.

    On a CPU that saves an eighth of a step's time, more on several cores. It acts on the whole process, so only the
    command line, which owns its process, does it; processes that it starts inherit it from their environment. Only
    glibc supports it.

    Returns:
        Whether it was set.
    """
    if sys.platform != "linux":
        return False
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(LARGEST_THRESHOLD))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(KEPT))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(MMAP_THRESHOLD, LARGEST_THRESHOLD), mallopt(TRIM_THRESHOLD, KEPT)])
