"""What a user did wrong, said so that they can mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FlowstillError(Exception):
    """Bad input. Its text names the value, the place, the nearest valid choice and the fix.

    The command line prints it on standard error and exits with code 2, without a traceback.
    """


class RecipeError(FlowstillError, ValueError):
    """A recipe, or one of its dataclasses, says something that cannot be run."""


class DataError(FlowstillError, ValueError):
    """A data set is missing, or holds something that cannot be trained on."""


class NetworkError(FlowstillError, ValueError):
    """A network cannot be built, loaded or read."""


class TapError(NetworkError):
    """A tap names no module, was not reached, or its map was overwritten."""


class ShapeError(NetworkError):
    """Two feature maps do not fit together; the text names both and their layers."""


class RunError(FlowstillError):
    """A run folder cannot be read, or cannot be written to."""


def nearest(name: str, choices: Iterable[str], count: int = 1) -> list[str]:
    """The ``count`` choices most like ``name``, the likeliest first; fewer if nothing is alike.

    >>> nearest("resnet62", ["resnet26", "vgg", "resnet8"])
    ['resnet26']
    """
    return difflib.get_close_matches(name, list(choices), n=count, cutoff=0.4)


def did_you_mean(name: str, choices: Iterable[str], count: int = 1) -> str:
    """A sentence that offers the nearest choices, or all of them where none is near and they are few.

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
