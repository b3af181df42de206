"""Errors about what a user wrote, with the fix."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_LONGEST_WORD, _LONGEST_LINE, _MOST_LINES = 300, 1200, 40  # of a message, in characters and lines
_MOST_CHOICES = 12
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # all but the end of a line
_from_command_line: ContextVar[bool] = ContextVar("from_command_line", default=False)


class FlowstillError(Exception):
    """Bad input. The text says what was expected, what was received, the nearest valid choice and the fix.

    The command line prints it on standard error and exits with code 2, without a traceback. What a user wrote may be of
    any length; the text of the error is not (``readable``).
    """

    def __init__(self, text: object = "") -> None:
        super().__init__(readable(str(text)))


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


def readable(text: str) -> str:
    """Cut a message where it is too long to read, and write control characters as escapes.

    Words keep their two ends, lines too, and of many lines the first are kept.

    Example:
        >>> len(readable("x" * 10_000 + " is too long"))
        312
    """
    lines = [_CONTROL.sub(lambda found: repr(found[0])[1:-1], line) for line in text.split("\n")]
    lines = [_cut(re.sub(rf"\S{{{_LONGEST_WORD + 1},}}", _cut_word, line), _LONGEST_LINE) for line in lines]
    more = len(lines) - _MOST_LINES
    return "\n".join(lines if more <= 0 else [*lines[:_MOST_LINES], f"... and {more} more lines"])


def _cut_word(found: re.Match[str]) -> str:
    return _cut(found[0], _LONGEST_WORD)


def _cut(text: str, length: int) -> str:
    """The text's two ends, in ``length`` characters, if it is longer."""
    end = length // 3
    return text if len(text) <= length else f"{text[: length - end - 3]}...{text[-end:]}"


def called_from_command_line() -> bool:
    """Whether messages name options as the command line does."""
    return _from_command_line.get()


@contextmanager
def command_line_words(used: bool = True) -> Iterator[None]:
    """Inside, messages name options as the command line does (``option``), or as Python does if not ``used``."""
    token = _from_command_line.set(used)
    try:
        yield
    finally:
        _from_command_line.reset(token)


def option(name: str, value: object = None) -> str:
    """How the user writes an option: as an argument in Python, with dashes on the command line.

    Args:
        name: the argument's name in Python.
        value: what it is set to; None to name the option alone. True stands for a switch.

    Example:
        >>> option("out"), option("resume", True), option("set", "seed=5")
        ('out=', 'resume=True', "set='seed=5'")
        >>> with command_line_words():
        ...     option("out"), option("resume", True), option("set", "seed=5")
        ('--out', '--resume', '--set seed=5')
    """
    if not called_from_command_line():
        return f"{name}=" + ("" if value is None else repr(value))
    dashed = "--" + name.replace("_", "-")
    return dashed if value is None or value is True else f"{dashed} {shlex.quote(str(value))}"


def nearest(name: str, choices: Iterable[str], count: int = 1) -> list[str]:
    """Find the choices that ``name`` may be a misspelling or a part of.

    A misspelling is at most two edits away, one for names of three letters: a letter too many, too few or wrong, or two
    letters swapped. Capitals do not matter. A part is a name's beginning or end, or words inside it.

    Args:
        name: what was written.
        choices: the valid names.
        count: how many to find.

    Returns:
        At most ``count`` choices, the most similar first; none if nothing is similar.

    Example:
        >>> nearest("resnet62", ["resnet26", "vgg-teacher", "resnet8"])
        ['resnet26']
        >>> nearest("vgg", ["resnet26", "vgg-teacher"]), nearest("mixup", ["flip", "size"])
        (['vgg-teacher'], [])
    """
    far = [(_distance(name, choice), choice) for choice in choices]
    found = sorted((distance, number) for number, (distance, _) in enumerate(far) if distance is not None)
    return [far[number][1] for _, number in found[:count]]


def _distance(name: str, choice: str) -> int | None:
    """How far ``choice`` is from ``name``: edits; after those, the words that one of them lacks; None if too far."""
    a, b = name.lower(), choice.lower()
    shorter, longer = sorted((len(a), len(b)))
    most = 2 if shorter > 3 else int(longer > 1)
    if abs(len(a) - len(b)) <= most and (edits := _edits(a, b)) <= most:
        return edits
    if shorter < 3:
        return None
    few, many = sorted((_words(a), _words(b)), key=len)
    starts = range(len(many) - len(few) + 1)
    inside = b.startswith(a) or b.endswith(a) or any(many[start : start + len(few)] == few for start in starts)
    return 3 + len(many) - len(few) if few and inside else None


def _words(name: str) -> list[str]:
    """The words and numbers in a name.

    >>> _words("vgg-teacher_2")
    ['vgg', 'teacher', '2']
    """
    return re.findall(r"[^\W\d_]+|\d+", name)


def _edits(a: Sequence[str], b: Sequence[str]) -> int:
    """The number of letters to insert, drop, replace or swap with the next (optimal string alignment).

    >>> _edits("fps", "fsp"), _edits("mixup", "flip")
    (1, 4)
    """
    before: list[int] = []
    above = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != other)))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                row[j] = min(row[j], before[j - 2] + 1)
        before, above = above, row
    return above[-1]


def did_you_mean(name: str, choices: Iterable[str], count: int = 1) -> str:
    """Suggest the nearest choices; if none is similar, list the choices, unless there are more than 12.

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
    if 0 < len(choices) <= _MOST_CHOICES:
        return f"Choose from {', '.join(repr(c) for c in choices)}."
    return ""
