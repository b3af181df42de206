"""A small teacher, a student and images, for the tests of ``distill``."""

import torch

import flowstill as fs
from flowstill.data.spec import Augment, Data
from flowstill.recipes.recipe import Job, Recipe
from flowstill.transfer.procedures import alone
from support.compared_runs import PLAIN

DATA = Data("digits", batch=32, augment=Augment(shift=1))
SHORT = 1 / 16_000  # four updates on the task


def taught(folder):
    """The weights of a teacher that has learned a little."""
    run = fs.train(Recipe("teacher", DATA, {"teacher": Job("resnet8", alone(20, 0.1))}), folder / "run", **PLAIN)
    return run.path / "teacher.safetensors"


def network(width=1.0):
    torch.manual_seed(3)
    return fs.create("resnet8", 10, 1, **({} if width == 1 else {"width": width}))
