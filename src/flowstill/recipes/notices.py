"""Warnings before training: sections that hold little of a network, and pairs with maps of different kinds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from torch import nn

from flowstill.features.pairs import Pairs, pair_sections, unlike
from flowstill.features.shares import find_shares

_log = logging.getLogger("flowstill")
_FLOWS = "'flows: [{teacher: [FRONT, BACK], student: [FRONT, BACK]}]'"


def pair_with_notices(
    teacher: nn.Module, student: nn.Module, example: Sequence[int], student_example: Sequence[int] | None = None
) -> Pairs:
    """``pair_sections``, with warnings about the pairs before training.

    Args:
        teacher: the network to learn from.
        student: the network that learns.
        example: shape of the images that the teacher sees, (B, C, H, W).
        student_example: likewise, of a student that sees another size; None for ``example``.

    Raises:
        NetworkError: a network has no sections, or no two sections fit.
    """
    student_example = student_example or example
    pairs = pair_sections(teacher, student, example, student_example)
    for notice in _notices(teacher, student, pairs, (example, student_example)):
        _log.warning(notice)
    return pairs


def _notices(
    teacher: nn.Module, student: nn.Module, pairs: Pairs, examples: tuple[Sequence[int], Sequence[int]]
) -> Iterator[str]:
    sides = (("teacher", teacher, [p.teacher for p in pairs]), ("student", student, [p.student for p in pairs]))
    for (role, network, sections), example in zip(sides, examples, strict=True):
        outside = find_shares(network, sections, example).mostly_outside()
        if outside:
            yield (
                f"The {role} {type(network).__name__} is paired in {len(sections)} section{'s' * (len(sections) > 1)}, but "
                f"{outside}. Knowledge that reads sections compares nothing there. To read other maps, name taps in the "
                f"job: {_FLOWS}; or choose knowledge that reads no sections, such as 'soft_logits'."
            )
    said = "; ".join(unlike(pairs))
    if said:
        yield (
            f"Teacher {type(teacher).__name__} and student {type(student).__name__} are compared at maps of different "
            f"kinds, and no pair of taps avoids it: {said}. To compare other maps, name taps in the job: {_FLOWS}."
        )
