"""Teachers trained once and shared by all tables that need the same one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowstill.engine import train
from flowstill.recipes.dump import plain
from flowstill.recipes.recipe import AfterStage, Recipe
from flowstill.runs import Run, is_run


def teacher_key(recipe: Recipe, name: str, precision: str, content: str) -> str:
    """Digest everything that a teacher's weights depend on: network, stages, seeds, data and precision.

    The data's folder and reader, and the recipe that needs the teacher, do not count.

    Args:
        recipe: with the teacher among its jobs.
        name: the teacher's job.
        precision: as for ``train``.
        content: fingerprint of the images.
    """
    job = recipe.jobs[name]
    data = {
        key: value
        for key, value in plain(recipe.data).items()
        if key not in ("root", "reader", "unlabelled", "workers")
    }
    parts = {
        "network": plain(job.network),
        "stages": plain(job.stages),
        "labels": job.labels,
        "seed": [recipe.seed, job.seed],
        "data": data,
        "content": content,
        "precision": precision,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def trained_by_itself(recipe: Recipe, name: str) -> bool:
    """Whether a job is a teacher that depends on no other job and so can be shared with other tables."""
    job = recipe.jobs[name]
    is_teacher = any(other.teacher == name for other in recipe.jobs.values())
    continued = any(isinstance(other.start, AfterStage) and other.start.job == name for other in recipe.jobs.values())
    return is_teacher and bool(job.stages) and not (continued or job.weights or job.start or job.teacher)


def with_teachers(recipe: Recipe, folders: Mapping[str, Path]) -> Recipe:
    """The recipe with its teachers' weights as files in these run folders, which need not exist yet."""
    weights = {name: str(folder / "teacher.safetensors") for name, folder in folders.items()}
    return replace(
        recipe, jobs={name: replace(job, weights=weights.get(name, job.weights)) for name, job in recipe.jobs.items()}
    )


def is_trained(folder: Path) -> bool:
    """Whether a teacher's folder holds a finished run."""
    return is_run(folder) and Run.open(folder).finished


def lost_jobs(recipe: Recipe, folders: Mapping[str, Path]) -> dict[str, str]:
    """The teachers that diverged, and the jobs that build on them -> why they have no result.

    Args:
        recipe: with the teachers among its jobs.
        folders: of the teachers, trained or not.
    """
    lost = {}
    for name, folder in folders.items():
        if is_trained(folder) and (failed := Run.open(folder).summary.failed):
            lost[name] = f"diverged: {failed['teacher']} ({folder})"
    for name in (name for group in recipe.groups() for name in group):
        if name not in lost and (source := next((other for other in recipe.builds_on(name) if other in lost), None)):
            lost[name] = f"not run, as {source!r} {'diverged' if source in folders else 'was not run'}"
    return lost


def train_teacher(recipe: Recipe, name: str, folder: Path, **options: Any) -> None:
    """Train a teacher in its folder, unless it is trained.

    Args:
        recipe: with the teacher among its jobs.
        name: the teacher's job.
        folder: its run folder.
        options: of ``train``.

    Raises:
        FlowstillError: as ``train`` does.
    """
    if not is_trained(folder):
        about = f"{recipe.jobs[name].network.name} on {recipe.data.name}"
        alone = replace(
            recipe, name="teacher", jobs={"teacher": recipe.jobs[name]}, ensembles={}, together=(), paper=None
        )
        train(replace(alone, about=about), folder, resume=True, **options)
