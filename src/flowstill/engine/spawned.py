"""What goes wrong in spawned processes, raised again in the process that started them."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from flowstill.errors import FlowstillError, RunError, called_from_command_line, command_line_words, readable

_LARGEST = 30_000  # bytes; a larger one would wait for a reader, which reads once the processes are gone


class Failures:
    """Carries exceptions out of spawned processes, and into them whether the command line started the run."""

    def __init__(self) -> None:
        self._queue: Any = multiprocessing.get_context("spawn").SimpleQueue()
        self._command_line = called_from_command_line()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """In a spawned process: hand over what the block raises, and use the words of who started the run."""
        try:
            with command_line_words(self._command_line):
                yield
        except BaseException as error:
            self._queue.put(_packed(error))
            raise

    @contextmanager
    def outside(self) -> Iterator[None]:
        """In the process that starts the others: raise what the first of them to fail raised.

        Raises:
            ChildProcessError: one ended without a word, as when it is killed.
        """
        log = logging.getLogger("torch.multiprocessing.spawn")  # it announces that it ends the others
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            yield
        except ProcessRaisedException as error:
            if self._queue.empty():
                raise
            first = pickle.loads(self._queue.get())
            # Errors about what a user wrote say all there is to say; for others, where they arose is of interest.
            raise first from None if isinstance(first, FlowstillError) else error
        except ProcessExitedException as error:
            killed = error.signal_name == "SIGKILL"
            raise ChildProcessError(
                f"One of the processes that share the batches ended by itself "
                f"({error.signal_name or f'exit code {error.exit_code}'})."
                + " The system does that when memory is full: use a smaller data.batch, or data.accumulate."
                * killed
            ) from None
        finally:
            log.setLevel(level)


def _packed(error: BaseException) -> bytes:
    """The exception as bytes; one of its kind with its text alone, if it cannot be packed."""
    try:
        packed = pickle.dumps(error)
        if len(packed) <= _LARGEST and type(pickle.loads(packed)) is type(error):
            return packed
    except Exception:  # whatever its own code raises
        packed = b""
    text = readable(str(error))
    notes = " ".join(getattr(error, "__notes__", ()))
    if isinstance(error, FlowstillError):
        return pickle.dumps(RunError(f"{text} {notes}".rstrip()))
    return pickle.dumps(RuntimeError(f"{type(error).__name__}: {text} {notes}".rstrip()))
