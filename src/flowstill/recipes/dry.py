"""A recipe cut down to a few steps on made-up images: tries everything in it in seconds, without its data."""

from __future__ import annotations

from dataclasses import replace

from flowstill.data.named import SYNTHETIC
from flowstill.data.spec import Data
from flowstill.recipes.recipe import Job, Recipe, Weights
from flowstill.transfer.schedules import Constant
from flowstill.transfer.stages import Stage

BATCH = 4  # images
RATE = Constant(1e-6)  # a few images of noise would make some networks diverge at the recipe's own


def dry(recipe: Recipe, steps: int = 2, batch: int = BATCH) -> Recipe:
    """The recipe with ``steps`` of each stage, or one for each batch of its cycle if that is more, on noise.

    Learning rates are next to nothing. Weights that would have to be there, from files or pretrained, are left out: the
    networks start fresh.

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
    few = replace(data, batch=min(batch, data.batch), accumulate=1, root=None, hold_out=0)
    name = SYNTHETIC + data.name.removeprefix(SYNTHETIC)
    return replace(few, name=name, unlabelled=min(data.unlabelled, batch))


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
