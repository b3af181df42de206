"""Small recipes whose students take stored knowledge, for several tests."""

from __future__ import annotations

from dataclasses import replace

from flowstill.data import Augment, Data
from flowstill.recipes.check import check
from flowstill.recipes.recipe import Job, Net, Recipe
from flowstill.transfer.procedures import alone, two_stage
from flowstill.transfer.stages import Stored

NET = Net("resnet8", {"width": 0.25})
PLAIN = {"device": "cpu", "precision": "32", "progress": False}
ALL_VIEWS = Stored(views=18)
CROPS = Data("digits", batch=32, labels=30, augment=Augment(crop=1, flip=True))
FEW = replace(CROPS, augment=Augment(crop=1, flip=True, views=2))


def recipe(stages, knowledge, data: Data = CROPS, teacher_steps: int = 2, **jobs: Job) -> Recipe:
    """A teacher, and a student whose stages with a teacher take what it knows in this way."""
    stages = told(stages, knowledge)
    jobs = {name: replace(job, stages=told(job.stages, knowledge)) for name, job in jobs.items()}
    return Recipe(
        "test",
        data,
        {
            "teacher": Job(NET, alone(teacher_steps, 0.05), seed=1),
            "student": Job(NET, stages, teacher="teacher"),
            **jobs,
        },
    )


def told(stages, knowledge):
    return tuple(replace(stage, knowledge=knowledge) if stage.needs_teacher else stage for stage in stages)


def fsp_first(steps: int = 6):
    return two_stage("fsp", transfer_steps=steps, transfer_lr=0.01, task_steps=2, task_lr=0.05)


def planned(stages, knowledge, data: Data = CROPS, images: int | None = 1297, **jobs: Job):
    return check(recipe(stages, knowledge, data, **jobs), (1, 8, 8), 10, images=images)
