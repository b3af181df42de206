"""Estimates how long a recipe will take on this machine and how much it will write, from a few steps of each stage."""

from __future__ import annotations

import itertools
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flowstill.engine import train
from flowstill.recipes.check import JobPlan
from flowstill.recipes.dry import dry
from flowstill.recipes.recipe import Recipe
from flowstill.recipes.storage import most_bytes

STEPS = 4  # of each stage; the first does not count
BATCH = 64  # images at most; a step's time is assumed to be proportional to them
STATE = 3  # copies of the weights in a saved state and beside it: weights, momenta, finished network


@dataclass(frozen=True)
class Estimate:
    """What a recipe will take.

    Attributes:
        updates_of: job -> updates.
        seconds: job -> training time, without evaluation.
        bytes: on the disk, for one run.
    """

    updates_of: dict[str, int]
    seconds: dict[str, float]
    bytes: int


def estimate(recipe: Recipe, plans: dict[str, JobPlan], **options: Any) -> Estimate:
    """Measure a few steps of each distinct stage on synthetic images, and extrapolate.

    Args:
        recipe: the recipe.
        plans: what ``check`` found for it.
        options: ``device`` and ``precision`` of ``train``.

    Raises:
        FlowstillError: as ``train`` does.
    """
    batch = min(BATCH, recipe.data.batch)
    kinds = {name: _kind(recipe, name) for name in recipe.jobs}
    first = {kind: name for name, kind in reversed(kinds.items())}
    needed = [name for name in recipe.jobs if name in first.values() or name in _built_on(recipe)]
    small = dry(recipe, STEPS, batch)
    small = replace(small, jobs={name: small.jobs[name] for name in needed}, ensembles={}, together=())
    times = {key: min(seconds) for key, seconds in step_times(small, **options).items()}
    share = recipe.data.batch / batch
    seconds = {}
    for name, job in recipe.jobs.items():
        measured = first[kinds[name]]
        stages = () if job.weights else job.stages
        seconds[name] = sum(stage.steps * times.get((measured, stage.name), 0.0) * share for stage in stages)
    parameters = [plans[name].counts.parameters for name in recipe.jobs]
    stored = most_bytes(file for plan in plans.values() for files in plan.stored.values() for file in files)
    size = 4 * sum(parameters) + 4 * STATE * max(parameters) + stored
    updates = {name: 0 if job.weights else sum(s.steps for s in job.stages) for name, job in recipe.jobs.items()}
    return Estimate(updates, seconds, size)


def _kind(recipe: Recipe, name: str) -> str:
    """A key that jobs share if their steps take the same time: same networks and stages, any seed, steps and rates."""
    job = recipe.jobs[name]
    teacher = recipe.jobs[job.teacher].network if job.teacher else None
    return repr((job.network, teacher, [(stage.name, stage.cycle, stage.knowledge) for stage in job.stages]))


def _built_on(recipe: Recipe) -> set[str]:
    return {other for name in recipe.jobs for other in recipe.builds_on(name)}


def step_times(recipe: Recipe, **options: Any) -> dict[tuple[str, str], list[float]]:
    """Run a recipe in a temporary folder and time its steps.

    Args:
        recipe: a small one.
        options: of ``train``.

    Returns:
        (job, stage) -> seconds of each step but the first.
    """
    marks: dict[tuple[str, str], list[float]] = {}
    on_gpu = torch.cuda.is_available() and options.get("device") != "cpu"

    def note(job: str, stage: str, step: int) -> None:
        if on_gpu:
            torch.cuda.synchronize()
        marks.setdefault((job, stage), []).append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        train(recipe, Path(folder) / "dry", progress=False, on_step=note, **options)
    return {key: [b - a for a, b in itertools.pairwise(at)] for key, at in marks.items() if len(at) > 1}
