"""Build a whole recipe from two networks, images and a method."""

from __future__ import annotations

from dataclasses import replace

from flowstill.data.named import NAMED
from flowstill.data.spec import Data
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
    """A recipe in which a trained ``teacher`` teaches ``student``.

    Args:
        name: the method's name, and the recipe's.
        stages: how the student is trained.
        teacher: a job with trained weights.
        student: a job without stages.
        data: the images.
        alone_too: also train the student's network alone, on the labels, for the same total number of updates.
        seed: the recipe's seed.

    Example:
        >>> from flowstill.transfer.methods import find_method
        >>> teacher, student = Job("resnet26", weights="teacher.safetensors"), Job("resnet8")
        >>> recipe = method_recipe("kd", find_method("kd").stages(3), teacher, student, Data("digits"))
        >>> list(recipe.jobs), recipe.jobs["student"].teacher
        (['teacher', 'student'], 'teacher')
    """
    jobs = {"teacher": replace(teacher, about=teacher.about or f"{teacher.network.name}, already trained")}
    if alone_too:
        about = f"{student.network.name} trained alone for the same total number of updates"
        jobs["student_alone"] = replace(
            student, stages=_alone_stages(sum(stage.steps for stage in stages)), about=about
        )
    about = f"{student.network.name}, taught by {name}"
    jobs["student"] = replace(student, stages=stages, teacher="teacher", about=about)
    return Recipe(name, data, jobs, seed=seed, about=f"{teacher.network.name} into {student.network.name} by {name}")


def _alone_stages(steps: int) -> tuple[Stage, ...]:
    """One stage on the labels, with the learning rate schedule stretched to ``steps``."""
    (usual,) = alone(TASK, TASK_LR)
    return alone(steps, TASK_LR.scaled(steps / usual.steps))


def usual_data(name: str) -> Data:
    """A data set with its usual augmentation for training.

    Args:
        name: of the data set; unknown sets get the default augmentation.

    Example:
        >>> usual_data("cifar10").augment.crop, usual_data("imagenet").test_crop
        (4, 0.875)
    """
    known = NAMED.get(name)
    return Data(name, augment=known.augment, test_crop=known.test_crop) if known else Data(name)
