"""Make a recipe shorter or longer, with all its schedules."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from flowstill.recipes.recipe import Constant, Cosine, Linear, Milestones, Recipe, Stage
from flowstill.transfer.rules import Rule

T = TypeVar("T")


def scaled(recipe: Recipe, factor: float) -> Recipe:
    """Multiply every count of steps in a recipe: stages, milestones, epochs of adaptive clipping.

    Counts are rounded; a stage and an epoch keep at least one step, and milestone 0 stays at 0.

    Args:
        recipe: the recipe.
        factor: what the counts are multiplied by.

    Example:
        >>> from flowstill.recipes.recipe import Data, Job, Recipe, Stage, Update
        >>> stage = Stage("task", 64000, {"student": {"lr": {0: 0.1, 32000: 0.01}}}, ((Update(task="labels"),),))
        >>> short = scaled(Recipe("r", Data("digits"), {"student": Job("resnet8", (stage,))}), 0.02)
        >>> short.jobs["student"].stages[0].steps, short.jobs["student"].stages[0].players["student"].lr
        (1280, Milestones(milestones={0: 0.1, 640: 0.01}))
    """
    return _scaled(recipe, factor)


def _scaled(value: T, factor: float) -> T:
    result: Any = value
    if isinstance(value, (Constant, Milestones, Linear, Cosine, Rule)):
        result = value.scaled(factor)
    elif isinstance(value, dict):
        result = {key: _scaled(item, factor) for key, item in value.items()}
    elif isinstance(value, tuple):
        result = tuple(_scaled(item, factor) for item in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _scaled(getattr(value, f.name), factor) for f in dataclasses.fields(value)}
        if isinstance(value, Stage):
            fields["steps"] = max(1, round(value.steps * factor))
        result = dataclasses.replace(value, **fields)
    return result  # type: ignore[no-any-return]  # the same type as the value
