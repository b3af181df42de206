"""A small recipe and its student, for the tests of the engine."""

import torch

import flowstill as fs
from flowstill.data.spec import Augment, Data
from flowstill.engine.seeds import derive
from flowstill.recipes.recipe import Job, Milestones, Net, Recipe
from flowstill.transfer.procedures import alone, two_stage

NET = Net("resnet8", {"width": 0.5})
DATA = Data("digits", batch=32, augment=Augment(shift=1))


def recipe(*, student=None, steps=6, **jobs):
    """A teacher, and a student of these stages, or of a transfer and the task after it."""
    stages = student or two_stage(
        "fsp", transfer_steps=steps, transfer_lr=Milestones({0: 0.01, 3: 0.001}), task_steps=steps, task_lr=0.05
    )
    teacher, student = Job(NET, alone(steps, 0.05), seed=1), Job(NET, stages, teacher="teacher")
    return Recipe("test", DATA, {"teacher": teacher, "student": student, **jobs})


def fresh_student():
    """The state of a job's student before its first step."""
    with torch.random.fork_rng():
        torch.manual_seed(derive(0, 0, "init"))
        return fs.create("resnet8", num_classes=10, in_channels=1, width=0.5).state_dict()
