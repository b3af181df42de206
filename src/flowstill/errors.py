"""Errors about what a user wrote, with the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
