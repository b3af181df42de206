"""Hints are summed over a map's entries at the papers' learning rate, and averaged beside a task."""

import pytest
import torch

from flowstill.knowledge.hints import Hints, hint_loss
from flowstill.recipes.load import load_recipe, recipe_names
from flowstill.transfer.methods import find_method


@pytest.mark.parametrize("size", [(4, 2, 3), (32, 16, 16)])
def test_by_default_an_images_squared_errors_are_summed_and_images_averaged(size):
    """|F_T - F_S|^2 as printed: a map that is 1 off everywhere costs its number of entries, in batches of any size."""
    entries = size[0] * size[1] * size[2]
    for images in (1, 5):
        guided, hint = torch.full((images, *size), 3.0).requires_grad_(), torch.full((images, *size), 2.0)
        (gradient,) = torch.autograd.grad(hint_loss(guided, hint), guided)
        assert float(hint_loss(guided, hint).detach()) == entries
        torch.testing.assert_close(gradient, torch.full((images, *size), 2 / images))
        assert float(hint_loss(guided, hint, sum=False).detach()) == 1.0


@pytest.mark.parametrize("name", ["fitnet", "fitnet3"])
def test_the_methods_sum(name):
    (term,) = find_method(name).stages(3)[0].updates[0].transfer
    assert term.knowledge.sum


def test_the_papers_tables_sum_and_joint_training_averages():
    found = {
        (beside.task != (), term.knowledge.sum, term.weight.at(0, 1) * (50 if recipe == "kr-table3" else 1))
        for recipe in recipe_names()
        for job in load_recipe(recipe).jobs.values()
        for stage in job.stages
        for beside in stage.updates
        for term in beside.terms
        if isinstance(term.knowledge, Hints) and stage.players["student"].lr.at(0, stage.steps) <= 1e-4
    }
    assert found == {(False, True, 1.0)}
    studies = [load_recipe(recipe) for recipe in ("cifar10-labels", "cifar10-transfer")]
    means = [
        term.knowledge.sum
        for study in studies
        for job in study.jobs.values()
        for stage in job.stages
        for term in stage.updates[0].terms
        if isinstance(term.knowledge, Hints)
    ]
    assert means == [False] * 3  # at a task's rate, with the weight that was chosen for the mean
