"""Errors about what a user wrote, with the fix."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class FlowstillError(Exception):
    """Bad input. The text says what was expected, what was received, the nearest valid choice and the fix.

    The command line prints it on standard error and exits with code 2, without a traceback.
    """


class RecipeError(FlowstillError, ValueError):
    """A recipe, or one of its dataclasses, cannot be run."""


class DataError(FlowstillError, ValueError):
    """A data set is missing or cannot be trained on."""


class NetworkError(FlowstillError, ValueError):
    """A network cannot be built, loaded or read."""


class TapError(NetworkError):
    """A tap names no module, its module was not reached, or its map was overwritten."""


class ShapeError(NetworkError):
    """Two feature maps do not fit; the text names both and their layers."""


class RunError(FlowstillError):
    """A run folder cannot be read or written."""


class DivergedError(RunError):
    """A network has no result: its losses or weights became infinite or NaN, or it builds on a network where they did.

    Everything else of the run is trained and saved.
    """


@contextmanager
def warnings_are_errors(strict: bool) -> Iterator[None]:
    """Refuse what flowstill warns of within the block, all of it at once, at the block's end.

    Args:
        strict: False changes nothing.

    Raises:
        FlowstillError: something was logged as a warning to ``flowstill``.

    Example:
        >>> try:
        ...     with warnings_are_errors(True):
        ...         logging.getLogger("flowstill").warning("The file is old.")
        ... except FlowstillError as error:
        ...     print(error)
        The file is old.
    """
    log, kept = logging.getLogger("flowstill"), _Kept()
    if not strict:
        yield
        return
    handlers, propagate = log.handlers, log.propagate
    log.handlers, log.propagate = [kept], False
    try:
        yield
    finally:
        log.handlers, log.propagate = handlers, propagate
    if kept.texts:
        raise FlowstillError("\n".join(dict.fromkeys(kept.texts)))


class _Kept(logging.Handler):
    """Keeps the texts of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.texts.append(record.getMessage())


def nearest(name: str, choices: Iterable[str], count: int = 1) -> list[str]:
    """Find the choices most similar to ``name``.

    Args:
        name: what was written.
        choices: the valid names.
        count: how many to find.

    Returns:
        At most ``count`` choices, the most similar first; none if nothing is similar.

    Example:
        >>> nearest("resnet62", ["resnet26", "vgg", "resnet8"])
        ['resnet26']
    """
    return difflib.get_close_matches(name, list(choices), n=count, cutoff=0.4)


def did_you_mean(name: str, choices: Iterable[str], count: int = 1) -> str:
    """Suggest the nearest choices, or list all of them if none is similar and there are few.

    Args:
        name: what was written.
        choices: the valid names.
        count: how many to suggest.

    Returns:
        A sentence; empty if there is nothing to suggest.

    Example:
        >>> did_you_mean("tescher", ["teacher", "student"])
        "Did you mean 'teacher'?"
        >>> did_you_mean("x", ["teacher", "student"])
        "Choose from 'teacher', 'student'."
    """
    choices = list(choices)
    near = nearest(name, choices, count)
    if near:
        return f"Did you mean {' or '.join(repr(n) for n in near)}?"
    if 0 < len(choices) <= 12:
        return f"Choose from {', '.join(repr(c) for c in choices)}."
    return ""
