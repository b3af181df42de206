"""Teachers trained once, and used by every table that wants the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowstill.engine import train
from flowstill.recipes.dump import plain
from flowstill.recipes.schema import AfterStage, Recipe
from flowstill.runs import Run, is_run


def teacher_key(recipe: Recipe, name: str, precision: str, content: str) -> str:
    """A digest of all that a teacher's weights depend on: its network, stages and seeds, the data, the precision.

    Where the data lie, and which recipe it is trained for, do not count. content: the data's fingerprint.
    """
    job = recipe.jobs[name]
    data = {key: value for key, value in plain(recipe.data).items() if key not in ("root", "unlabelled", "workers")}
    parts = {"network": plain(job.network), "stages": plain(job.stages), "labels": job.labels,
             "seed": [recipe.seed, job.seed], "data": data, "content": content, "precision": precision}  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def trained_by_itself(recipe: Recipe, name: str) -> bool:
    """Whether a job is a teacher that its own stages train from the start, so that it may be kept for other tables."""
    job = recipe.jobs[name]
    is_teacher = any(other.teacher == name for other in recipe.jobs.values())
    begun_from = any(isinstance(other.start, AfterStage) and other.start.job == name for other in recipe.jobs.values())
    return is_teacher and bool(job.stages) and not (begun_from or job.weights or job.start or job.teacher)


def with_teachers(recipe: Recipe, folders: Mapping[str, Path], **options: Any) -> Recipe:
    """The recipe with the weights of the teachers that have a run folder; what was not trained there yet is trained.

    options: of ``train``. Raises: FlowstillError as ``train`` does.
    """
    runs = {name: _trained(recipe, name, folder, **options) for name, folder in folders.items()}
    weights = {name: str(run.path / "teacher.safetensors") for name, run in runs.items()}
    jobs = {name: replace(job, weights=weights.get(name, job.weights)) for name, job in recipe.jobs.items()}
    return replace(recipe, jobs=jobs)


def _trained(recipe: Recipe, name: str, path: Path, **options: Any) -> Run:
    alone = replace(recipe, name="teacher", jobs={"teacher": recipe.jobs[name]}, ensembles={}, together=(), paper=None)
    alone = replace(alone, about=f"{recipe.jobs[name].network.name} on {recipe.data.name}")
    if is_run(path) and Run.open(path).finished:
        return Run.open(path)
    return train(alone, path, resume=True, **options)
