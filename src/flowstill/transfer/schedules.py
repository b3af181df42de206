"""Values that change over a stage: learning rates and the weights of terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from flowstill.schema import specification


@specification
class Constant:
    """The same value throughout.

    Attributes:
        value: the value.
    """

    value: float

    @property
    def smallest(self) -> float:
        """The smallest value."""
        return self.value

    def at(self, step: int, steps: int) -> float:
        """The value at ``step`` of ``steps``."""
        return self.value

    def scaled(self, factor: float) -> Constant:
        """Unchanged: nothing here is counted in steps."""
        return self


@specification
class Milestones:
    """Steps down (or up) at given iterations: ``{0: 0.1, 32000: 0.01, 48000: 0.001}``.

    Attributes:
        milestones: the iteration at which each value starts to apply; the first is 0.

    >>> Milestones({0: 0.1, 100: 0.01}).at(99, 200)
    0.1
    """

    milestones: dict[int, float]

    def __post_init__(self) -> None:
        if 0 not in self.milestones or min(self.milestones) < 0:
            raise ValueError(f"milestones start at iteration 0, not {min(self.milestones, default=None)}")

    @property
    def smallest(self) -> float:
        """The smallest value."""
        return min(self.milestones.values())

    def at(self, step: int, steps: int) -> float:
        """The value of the last milestone that ``step`` has reached."""
        return self.milestones[max(m for m in self.milestones if m <= step)]

    def scaled(self, factor: float) -> Milestones:
        """All milestones at ``factor`` times their iteration, in order and each at its own iteration.

        Where rounding would merge two, the later one moves on, so that a stage still starts with its first value.

        >>> Milestones({0: 0.1, 100: 0.01, 150: 0.001}).scaled(0.001).milestones
        {0: 0.1, 1: 0.01, 2: 0.001}
        """
        milestones: dict[int, float] = {}
        for iteration, value in sorted(self.milestones.items()):
            milestones[max(round(iteration * factor), max(milestones, default=-1) + 1)] = value
        return Milestones(milestones)


@specification
class Linear:
    """A straight line over the stage, ``{linear: [4, 1]}``, or stairs along it, ``{linear: [4, 1], stairs: 10}``.

    Attributes:
        linear: the values at the stage's first and last step.
        stairs: the number of equal parts of the stage that each keep the line's value at their start; None for the
            line itself. The last value lies at the stage's end, so no step has it.

    >>> Linear((4, 1)).at(50, 101)
    2.5
    >>> [Linear((4, 1), stairs=3).at(step, 6) for step in range(6)]
    [4.0, 4.0, 3.0, 3.0, 2.0, 2.0]
    """

    linear: tuple[float, float]
    stairs: Annotated[int, Field(ge=1)] | None = None

    @property
    def smallest(self) -> float:
        """The smallest value."""
        return min(self.linear)

    def at(self, step: int, steps: int) -> float:
        """The line's value; its ends lie at the first and the last step. With ``stairs``, the value of the step's part."""
        first, last = self.linear
        if self.stairs:
            return first + (last - first) * (step * self.stairs // steps) / self.stairs
        return first + (last - first) * (step / max(1, steps - 1))

    def scaled(self, factor: float) -> Linear:
        """Unchanged: it spans the stage whatever its length."""
        return self


@specification
class Cosine:
    """Linear warm-up over a share of the stage, then half a cosine down to zero: ``{cosine: 0.4, warmup: 0.2}``.

    Attributes:
        cosine: the peak value.
        warmup: the share of the stage's steps spent rising to the peak.
    """

    cosine: float
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def smallest(self) -> float:
        """The smallest value."""
        return min(0.0, self.cosine)

    def at(self, step: int, steps: int) -> float:
        """The value at ``step`` of ``steps``."""
        rise = self.warmup * steps
        if step < rise:
            return self.cosine * (step + 1) / (rise + 1)
        return self.cosine * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))

    def scaled(self, factor: float) -> Cosine:
        """Unchanged: it spans the stage whatever its length."""
        return self


def _as_schedule(value: Any) -> Any:
    """A number is constant; a mapping whose keys are iterations holds milestones."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Constant(value)
    if isinstance(value, dict) and value and all(isinstance(key, int) for key in value):
        return {"milestones": value}
    return value


Schedule = Annotated[
    Constant | Milestones | Linear | Cosine,
    BeforeValidator(_as_schedule),
    Field(description="a number, milestones {0: 0.1, 100: 0.01}, {linear: [4, 1]} or {cosine: 0.1}"),
]
ScheduleLike = Constant | Milestones | Linear | Cosine | float | Mapping[int, float] | Mapping[str, Any]


def multiplied(schedule: Schedule, factor: float) -> Schedule:
    """The schedule with all its values multiplied by ``factor``.

    >>> multiplied(Milestones({0: 0.7, 100: 0.1}), 0.01).milestones
    {0: 0.007, 100: 0.001}
    """

    def times(value: float) -> float:
        return float(f"{value * factor:.12g}")  # 0.007, where 0.7 * 0.01 is 0.006999999999999999

    match schedule:
        case Constant(value):
            return Constant(times(value))
        case Milestones(milestones):
            return Milestones({step: times(value) for step, value in milestones.items()})
        case Linear((first, last)):
            return replace(schedule, linear=(times(first), times(last)))
        case Cosine():
            return replace(schedule, cosine=times(schedule.cosine))
