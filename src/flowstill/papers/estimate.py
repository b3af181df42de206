"""How long a recipe will take here, and how much it will write, from a few steps of each of its stages."""

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
BATCH = 64  # images at most; a step's time is taken to grow with them
STATE = 3  # a saved state holds weights and momenta of what trains, before the finished network is kept


@dataclass(frozen=True)
class Estimate:
    """What a recipe's jobs will take: updates and seconds of each, without evaluation; bytes on the disk."""

    updates_of: dict[str, int]
    seconds: dict[str, float]
    bytes: int


def estimate(recipe: Recipe, plans: dict[str, JobPlan], **options: Any) -> Estimate:
    """Measure a few steps of each different stage on made-up images, and multiply.

    options: ``device``, ``precision`` of ``train``. Raises: FlowstillError as ``train`` does.
    """
    batch = min(BATCH, recipe.data.batch)
    alike = {name: _kind(recipe, name) for name in recipe.jobs}
    first = {kind: name for name, kind in reversed(alike.items())}
    needed = [name for name in recipe.jobs if name in first.values() or name in _built_on(recipe)]
    small = dry(recipe, STEPS, batch)
    small = replace(small, jobs={name: small.jobs[name] for name in needed}, ensembles={}, together=())
    times = {key: min(seconds) for key, seconds in step_times(small, **options).items()}
    share = recipe.data.batch / batch
    seconds = {}
    for name, job in recipe.jobs.items():
        like = first[alike[name]]
        stages = () if job.weights else job.stages
        seconds[name] = sum(stage.steps * times.get((like, stage.name), 0.0) * share for stage in stages)
    parameters = [plans[name].counts.parameters for name in recipe.jobs]
    stored = most_bytes(file for plan in plans.values() for files in plan.stored.values() for file in files)
    size = 4 * sum(parameters) + 4 * STATE * max(parameters) + stored
    updates = {name: 0 if job.weights else sum(s.steps for s in job.stages) for name, job in recipe.jobs.items()}
    return Estimate(updates, seconds, size)


def _kind(recipe: Recipe, name: str) -> str:
    """Jobs of one kind take the same time: the same networks and stages, whatever their seeds, steps and rates."""
    job = recipe.jobs[name]
    teacher = recipe.jobs[job.teacher].network if job.teacher else None
    return repr((job.network, teacher, [(stage.name, stage.cycle, stage.knowledge) for stage in job.stages]))


def _built_on(recipe: Recipe) -> set[str]:
    return {other for name in recipe.jobs for other in recipe.builds_on(name)}


def step_times(recipe: Recipe, **options: Any) -> dict[tuple[str, str], list[float]]:
    """Run a recipe in a folder that goes away: job and stage -> seconds of each step but the first."""
    marks: dict[tuple[str, str], list[float]] = {}
    on_gpu = torch.cuda.is_available() and options.get("device") != "cpu"

    def note(job: str, stage: str, step: int) -> None:
        if on_gpu:
            torch.cuda.synchronize()
        marks.setdefault((job, stage), []).append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        train(recipe, Path(folder) / "dry", progress=False, on_step=note, **options)
    return {key: [b - a for a, b in itertools.pairwise(at)] for key, at in marks.items() if len(at) > 1}
