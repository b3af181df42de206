"""Recipes as files in the working directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowstill.errors import RecipeError
from flowstill.recipes.load import load_recipe
from flowstill.recipes.recipe import Recipe

SHORT = """\
name: short
data: {name: digits, batch: 32}
teacher:
  network: resnet26
  stages:
    - &task {name: task, steps: 100, lr: {0: 0.1, 50: 1e-2}, task: labels}
student: resnet8
stages:
  - {name: transfer, steps: 40, lr: 1e-3, transfer: fsp}
  - *task
"""


def load(text: str, **options: Any) -> Recipe:
    """The recipe of this text, from the file ``r.yaml``."""
    Path("r.yaml").write_text(text, encoding="utf-8")
    return load_recipe("r.yaml", **options)


def problems(text: str, **options: Any) -> list[str]:
    """What is wrong with the recipe of this text, line by line."""
    with pytest.raises(RecipeError) as caught:
        load(text, **options)
    return str(caught.value).splitlines()


def steps(recipe: Recipe) -> dict[str, list[int]]:
    """Each job's number of steps, stage by stage."""
    return {name: [stage.steps for stage in job.stages] for name, job in recipe.jobs.items()}
