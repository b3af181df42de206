"""A recipe cut down to a few steps on synthetic images, to try all of it in seconds without its data."""

from __future__ import annotations

from dataclasses import replace

from flowstill.data.named import SYNTHETIC
from flowstill.data.spec import Data
from flowstill.recipes.recipe import Job, Recipe, Weights
from flowstill.transfer.schedules import Constant
from flowstill.transfer.stages import Stage

BATCH = 4  # images
RATE = Constant(1e-6)  # at the recipe's rate some networks would diverge on a few images of noise


def dry(recipe: Recipe, steps: int = 2, batch: int = BATCH) -> Recipe:
    """Cut a recipe down to a few steps on synthetic images.

    Learning rates become tiny. No weights are loaded, neither files nor pretrained ones: networks start from random
    weights.

    Args:
        recipe: the whole recipe.
        steps: steps of each stage; one for each batch of the stage's cycle if that is more.
        batch: largest batch size.

    Example:
        >>> from flowstill.recipes.load import load_recipe
        >>> small = dry(load_recipe("fsp-table3"))
        >>> small.data.name, [stage.steps for stage in small.jobs["teacher"].stages]
        ('synthetic:cifar10', [2])
    """
    jobs = {name: _dry_job(job, steps) for name, job in recipe.jobs.items()}
    labels = [job.labels for job in recipe.jobs.values() if job.labels]
    data = replace(recipe.data, labels=recipe.data.labels or max(labels, default=None))
    return replace(recipe, data=_dry_data(data, batch), jobs=jobs)


def _dry_data(data: Data, batch: int) -> Data:
    small = replace(data, batch=min(batch, data.batch), accumulate=1, root=None, hold_out=0)
    name = SYNTHETIC + data.name.removeprefix(SYNTHETIC)
    return replace(small, name=name, unlabelled=min(data.unlabelled, batch))


def _dry_job(job: Job, steps: int) -> Job:
    stages = tuple(_dry_stage(stage, steps) for stage in job.stages)
    options = {key: value for key, value in job.network.options.items() if key != "pretrained"}
    start = None if isinstance(job.start, Weights) else job.start
    return replace(
        job, network=replace(job.network, options=options), stages=stages, start=start, weights=None, labels=None
    )


def _dry_stage(stage: Stage, steps: int) -> Stage:
    players = {name: replace(player, lr=RATE) for name, player in stage.players.items()}
    return replace(stage, steps=max(steps, len(stage.cycle)), players=players)
