"""Ways for a spawned process to fail. They live in a module that such a process can import."""

import errno
import os

from flowstill.errors import RunError, option


class Unpackable(RuntimeError):
    def __reduce__(self):
        raise TypeError("not to be packed")


def full():
    error = OSError(errno.ENOSPC, "No space left on device", "run/state.pt")
    error.add_note("a note")
    raise error


def in_words():
    raise RunError(f"Give another {option('out')}.")


def stopped():
    raise KeyboardInterrupt


def unpackable():
    raise Unpackable("of its own kind")


def gone():
    os._exit(7)


def long():
    raise ValueError("x" * 100_000)


def part(rank, failures, fail):
    with failures.inside():
        if rank == 0:
            fail()
