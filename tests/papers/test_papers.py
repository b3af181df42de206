"""The recipes that come with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowstill.knowledge.labels import Labels
from flowstill.recipes.dump import dump_recipe
from flowstill.recipes.load import load_recipe, recipe_names
from flowstill.recipes.recipe import Augment, Data, Milestones, Optimizer, Term
from support.recipe_files import load, steps


def test_packaged_recipes_load_and_say_what_they_are_about() -> None:
    names = recipe_names()
    assert {"digits", "fsp-table3"} <= set(names)
    for name, about in names.items():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.about == about
        assert about


@pytest.mark.parametrize("name", sorted(recipe_names()))
def test_packaged_recipes_round_trip_through_yaml(here: Path, name: str) -> None:
    assert load(dump_recipe(load_recipe(name))) == load_recipe(name)


@pytest.mark.parametrize(("name", "student"), [("digits", "student"), ("fsp-table3", "fsp")])
def test_the_baselines_have_as_many_updates_as_the_student(name: str, student: str) -> None:
    recipe = load_recipe(name)
    count = steps(recipe)
    assert recipe.jobs[student].teacher == "teacher"
    assert count["student_scratch"] == count[student][1:]
    assert sum(count["student_scratch_total"]) == sum(count[student])
    for job in ("student_scratch", "student_scratch_total"):
        assert recipe.jobs[job].network == recipe.jobs[student].network
        assert recipe.jobs[job].labels == recipe.jobs[student].labels
        assert recipe.jobs[job].teacher is None
    total, task = (recipe.jobs[job].stages[0] for job in ("student_scratch_total", "student_scratch"))
    assert total.players["student"].lr == task.players["student"].lr.scaled(total.steps / task.steps)


def test_fsp_table3_is_the_papers_setting() -> None:
    recipe = load_recipe("fsp-table3")
    assert recipe.data == Data("cifar10", batch=256, augment=Augment(crop=4))
    assert {name: job.network.name for name, job in recipe.jobs.items()} == {
        "teacher": "resnet26",
        "student_scratch": "resnet8",
        "student_scratch_total": "resnet8",
        "fitnet": "resnet8",
        "fsp": "resnet8",
    }
    full = Milestones({0: 0.1, 32000: 0.01, 48000: 0.001})
    first = Milestones({0: 0.001, 11000: 0.0001, 16000: 0.00001})
    rows = {name: [(s.steps, s.players["student"].lr) for s in job.stages] for name, job in recipe.jobs.items()}
    assert rows == {
        "teacher": [(64000, full)],
        "student_scratch": [(64000, full)],
        "student_scratch_total": [(85000, Milestones({0: 0.1, 42500: 0.01, 63750: 0.001}))],
        "fitnet": [(35000, Milestones({0: 1e-4, 25000: 1e-5})), (64000, full)],
        "fsp": [(21000, first), (64000, full)],
    }
    stages = [stage for job in recipe.jobs.values() for stage in job.stages]
    assert {stage.players["student"].optimizer for stage in stages} == {Optimizer("sgd", 0.9, False, 1e-4, "all")}
    transfer, task = recipe.jobs["fsp"].stages
    assert [term.knowledge.name for term in transfer.updates[0].transfer] == ["fsp"]
    assert transfer.updates[0].task == ()
    assert task.updates[0].task == (Term(Labels()),)
    assert recipe.paper is not None
    assert recipe.paper.accuracy == {"teacher": 91.91, "student_scratch": 87.91, "fitnet": 88.57, "fsp": 88.70}


def test_fsp_table3_at_a_fiftieth() -> None:
    recipe = load_recipe("fsp-table3", scale=0.02)
    assert list(steps(recipe).values()) == [[1280], [1280], [1700], [700, 1280], [420, 1280]]
    assert recipe.jobs["fsp"].stages[0].players["student"].lr == Milestones({0: 0.001, 220: 0.0001, 320: 0.00001})


def test_digits_gives_labels_to_the_students_only_in_part() -> None:
    recipe = load_recipe("digits")
    assert recipe.data.labels is None
    assert {name: job.labels for name, job in recipe.jobs.items()} == {
        "teacher": None,
        "student_scratch": 200,
        "student_scratch_total": 200,
        "student": 200,
    }
