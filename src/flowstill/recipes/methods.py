"""A whole recipe from two networks, images and a method."""

from __future__ import annotations

from dataclasses import replace

from flowstill.data.named import NAMED
from flowstill.data.spec import Augment, Data
from flowstill.recipes.recipe import Job, Recipe
from flowstill.transfer.methods import TASK, TASK_LR
from flowstill.transfer.procedures import alone
from flowstill.transfer.stages import Stage


def method_recipe(
    name: str,
    stages: tuple[Stage, ...],
    teacher: Job,
    student: Job,
    data: Data,
    *,
    alone_too: bool = False,
    seed: int = 0,
) -> Recipe:
    """A recipe in which ``teacher``, finished, teaches ``student`` by these stages.

    alone_too: train the student's network by itself as well, on the labels for as many updates as all stages have.

    >>> from flowstill.transfer.methods import find_method
    >>> teacher, student = Job("resnet26", weights="teacher.safetensors"), Job("resnet8")
    >>> recipe = method_recipe("kd", find_method("kd").stages(3), teacher, student, Data("digits"))
    >>> list(recipe.jobs), recipe.jobs["student"].teacher
    (['teacher', 'student'], 'teacher')
    """
    jobs = {"teacher": replace(teacher, about=teacher.about or f"{teacher.network.name}, as it is given")}
    if alone_too:
        about = f"{student.network.name} alone, as many updates in all"
        jobs["student_alone"] = replace(student, stages=_by_itself(sum(stage.steps for stage in stages)), about=about)
    about = f"{student.network.name}, taught by {name}"
    jobs["student"] = replace(student, stages=stages, teacher="teacher", about=about)
    return Recipe(name, data, jobs, seed=seed, about=f"{teacher.network.name} into {student.network.name} by {name}")


def _by_itself(steps: int) -> tuple[Stage, ...]:
    """The task alone, its learning rates stretched to ``steps``."""
    (whole,) = alone(TASK, TASK_LR)
    return alone(steps, TASK_LR.scaled(steps / whole.steps))


def usual_data(name: str) -> Data:
    """A data set by name, with the augmentation that networks are usually trained with on it.

    >>> usual_data("cifar10").augment.crop, usual_data("owner/set").augment == Augment()
    (4, True)
    """
    return Data(name, augment=NAMED[name].augment if name in NAMED else Augment())
