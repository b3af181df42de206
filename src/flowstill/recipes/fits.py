"""Whether a recipe fits its images and the machine's memory."""

from __future__ import annotations

import logging
import math
import os

from flowstill.errors import RecipeError
from flowstill.files import readable_size
from flowstill.recipes.recipe import Recipe

FLOAT = 4  # bytes
_log = logging.getLogger("flowstill")


def check_fit(recipe: Recipe, shape: tuple[int, int, int], classes: int, images: int | None = None) -> None:
    """Check the batch size and the number of classes; warn if a batch is larger than the whole set.

    Args:
        recipe: the recipe.
        shape: (C, H, W) of the images.
        classes: number of classes in the data.
        images: number of training images; None if unknown.

    Raises:
        RecipeError: one batch of images needs more memory than the machine has, or there is only one class.
    """
    trains = [name for name, job in recipe.jobs.items() if not job.weights and any(s.rhythm for s in job.stages)]
    tasks = [name for name in trains if any(task for s in recipe.jobs[name].stages for task, _ in s.rhythm)]
    if tasks and classes < 2:
        raise RecipeError(
            f"{recipe.data.name!r} has only one class, and {tasks[0]!r} trains on labels. Expected at least two classes."
        )
    batch = recipe.data.batch + recipe.data.unlabelled
    takes, there = batch * math.prod(shape) * FLOAT, memory()
    if trains and there is not None and takes > there:
        raise RecipeError(
            f"data.batch is {recipe.data.batch}: one batch of images takes {readable_size(takes)}, and this machine has "
            f"{readable_size(there)} of memory. Use a smaller data.batch."
        )
    if trains and images is not None and recipe.data.batch > images:
        _log.warning(
            "data.batch is %d, but there are only %d training images: every batch repeats some of them.",
            recipe.data.batch,
            images,
        )


def memory() -> int | None:
    """The machine's memory in bytes; None if it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None
