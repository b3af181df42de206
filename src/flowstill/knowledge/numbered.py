"""Sections that an option lists by number, and freezing what lies below them."""

from __future__ import annotations

from collections.abc import Sequence

from flowstill.errors import RecipeError
from flowstill.features.pairs import Pairs
from flowstill.features.taps import Tap


def check_numbers(option: str, numbers: Sequence[int] | None, freeze_below: bool, otherwise: str) -> None:
    """Check section numbers as a recipe gives them.

    Args:
        option: the field that holds them.
        numbers: counted from 0; None if the field holds something else.
        freeze_below: whether the sections below the first are to be frozen, so that there must be some.
        otherwise: what to do instead of listing numbers.

    Raises:
        ValueError: none, or one twice, or nothing to freeze.
    """
    if freeze_below and not (numbers and min(numbers)):
        raise ValueError(
            f"'freeze_below' needs section numbers above 0 in {option!r}, to freeze the sections below them; "
            "add them, or leave it out"
        )
    if numbers is not None and not 0 < len(numbers) == len(set(numbers)):
        raise ValueError(f"{option} {tuple(numbers)}: list at least one section, each once; or {otherwise}")


def check_in_range(knowledge: str, option: str, numbers: Sequence[int], pairs: Pairs) -> None:
    """Raises: RecipeError if there is no pair of sections with one of these numbers."""
    if max(numbers) >= len(pairs):
        raise RecipeError(
            f"{knowledge}: no section {max(numbers)}: the networks pair in {len(pairs)} sections, numbered "
            f"from 0 to {len(pairs) - 1}; change {option!r}."
        )


def end_below(pairs: Pairs, number: int) -> Tap:
    """Where the student's section below this one ends: what it depends on is frozen.

    Args:
        number: at least 1.
    """
    return pairs[number - 1].student.exit
