"""Teachers trained once, and used by every table that wants the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowstill.engine import train
from flowstill.recipes.dump import plain
from flowstill.recipes.schema import Recipe
from flowstill.runs import Run, is_run

FACTS = "teacher.json"


def teacher_key(recipe: Recipe, name: str, precision: str) -> str:
    """A digest of all that a teacher's weights depend on: its network, stages and seeds, the data, the precision.

    Where the data lie, and which recipe it is trained for, do not count.
    """
    job = recipe.jobs[name]
    data = {key: value for key, value in plain(recipe.data).items() if key not in ("root", "unlabelled", "workers")}
    parts = {"network": plain(job.network), "stages": plain(job.stages), "labels": job.labels,
             "seed": [recipe.seed, job.seed], "data": data, "precision": precision}  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def trained_by_itself(recipe: Recipe, name: str) -> bool:
    """Whether a job is a teacher that its own stages train from the start, so that it may be kept for other tables."""
    job = recipe.jobs[name]
    is_teacher = any(other.teacher == name for other in recipe.jobs.values())
    return is_teacher and bool(job.stages) and not (job.weights or job.start or job.teacher)


def with_teachers(recipe: Recipe, folder: Path, *, precision: str = "auto", **options: Any) -> Recipe:
    """The recipe with its teachers' weights from ``folder``; those that are not there yet are trained first.

    Each has a run folder of its own, named by ``teacher_key``; one that was stopped goes on where it was.
    options: of ``train``. Raises: FlowstillError as ``train`` does.
    """
    jobs = dict(recipe.jobs)
    for name, job in recipe.jobs.items():
        if trained_by_itself(recipe, name) and not _is_begun_from(recipe, name):
            run = _trained(recipe, name, folder / teacher_key(recipe, name, precision), precision=precision, **options)
            jobs[name] = replace(job, weights=str(run.path / "teacher.safetensors"))
    return replace(recipe, jobs=jobs)


def _is_begun_from(recipe: Recipe, name: str) -> bool:
    """Whether another job starts after one of its stages, which must then run with the rest."""
    return any(name in recipe.builds_on(other) and job.teacher != name for other, job in recipe.jobs.items())


def _trained(recipe: Recipe, name: str, path: Path, **options: Any) -> Run:
    alone = replace(recipe, name="teacher", jobs={"teacher": recipe.jobs[name]}, ensembles={}, together=(), paper=None)
    alone = replace(alone, about=f"{recipe.jobs[name].network.name} on {recipe.data.name}")
    if is_run(path) and Run.open(path).finished:
        return Run.open(path)
    return train(alone, path, resume=True, **options)
