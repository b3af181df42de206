"""Flows with their matrices' shapes: the weights and checks that FSP and its dense form share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from flowstill.errors import RecipeError, ShapeError
from flowstill.features.taps import Flow, Tap

Factors = tuple[Annotated[float, Field(ge=0)], ...]  # one for each flow
Weighting = Literal["equal", "sum", "element_mean"] | Factors
Shaped = tuple[Flow, tuple[int, int]]  # a flow, and the shape of its matrix


def taps_of(flows: Sequence[Flow]) -> tuple[Tap, ...]:
    """All taps of these flows, each once, in order."""
    return tuple(dict.fromkeys(tap for flow in flows for tap in (flow.front, flow.back)))


def flow_weights(weighting: Weighting, shapes: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """The alpha_i of Eq. 2 of Yim et al. (2017) for matrices of these shapes.

    ``equal``: all the same, as in the paper. Their common value, which it does not print, is 1 / sum_i m_i n_i, so that
    the loss does not grow with the network's width. ``sum``: all 1, the plain sum of squares; sum_i m_i n_i times as
    large as ``equal``, it can diverge at the paper's learning rate of 1e-3. ``element_mean``: 1 / (m_i n_i), the mean
    over each matrix; not the paper's, since it favours narrow sections, 8 : 4 : 1 in a CIFAR ResNet.

    Args:
        weighting: one of these names, or the weights themselves, one for each matrix.
        shapes: (m_i, n_i) of each matrix.

    Raises:
        RecipeError: the number of weights is not the number of matrices.

    >>> flow_weights("equal", [(1, 2), (2, 4)])
    (0.1, 0.1)
    >>> flow_weights("element_mean", [(1, 2), (2, 4)])
    (0.5, 0.125)
    """
    sizes = [m * n for m, n in shapes]
    if weighting == "equal":
        return (1 / sum(sizes),) * len(sizes)
    if weighting == "sum":
        return (1.0,) * len(sizes)
    if weighting == "element_mean":
        return tuple(1 / size for size in sizes)
    if len(weighting) != len(sizes):
        raise RecipeError(
            f"fsp: weighting has {len(weighting)} numbers {weighting}, but {len(sizes)} sections are trained; "
            "give one for each, in order, or 'equal'."
        )
    return weighting


def check_channels(
    knowledge: str,
    teacher: Sequence[Shaped],
    student: Sequence[Shaped],
    kind: str,
    names: Sequence[object],
    optional: bool = True,
) -> None:
    """Eq. 2 subtracts matrices, so their shapes must agree.

    Args:
        knowledge: its name.
        teacher: each flow of the teacher, with its matrix's shape.
        student: the student's.
        kind: what users call a flow, such as ``section``; an option with that name's plural selects among them.
        names: of the flows, such as 0, 1, 2.
        optional: whether that option can be used here.

    Raises:
        ShapeError: naming every flow that differs.
    """
    wrong, fit = [], []
    for name, (flow_t, (m, n)), (flow_s, (i, j)) in zip(names, teacher, student, strict=True):
        if (m, n) == (i, j):
            fit.append(name)
        else:
            wrong.append(
                f"{kind} {name}: {m}x{n} in the teacher ({flow_t.front} -> {flow_t.back}), "
                f"{i}x{j} in the student ({flow_s.front} -> {flow_s.back})"
            )
    if wrong:
        subset = f", or train only what fits: '{kind}s: {fit}'" if fit and optional else ""
        raise ShapeError(
            f"{knowledge} needs equal channels, but its matrices differ in {'; in '.join(wrong)}. "
            f"Give the student the teacher's widths{subset}, or choose a knowledge that allows any channels, "
            "such as 'attention'."
        )
