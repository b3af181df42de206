"""Options that change a recipe: --set, --seed, --data-root, --scale, --trust-code."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowstill.knowledge.labels import Labels
from flowstill.recipes.load import load_recipe
from flowstill.recipes.recipe import (
    AfterStage,
    Augment,
    Constant,
    Data,
    Job,
    Linear,
    Milestones,
    Net,
    Optimizer,
    Player,
    Term,
    Weights,
)
from support.recipe_files import SHORT, load, problems


def test_set_changes_values_anywhere(here: Path) -> None:
    changes = [
        "data.batch=64",
        "data.augment.crop=2",
        "seed=5",
        "about='a text: with signs'",
        "teacher.start.weights=t.safetensors",
        "jobs.student.network=resnet14",
        "student.network.options.width=2",
        "student.network.options.3=three",
        "student.stages.transfer.lr={linear: [1e-2, 1e-3]}",
        "student.stages[0].transfer.weight=300",
        "stages.1.lr.75=0.001",
        "stages.task.optimizer={name: adam, weight_decay: 0}",
        "teacher.stages.task.task=[labels, {name: labels, smoothing: 0.1}]",
        "student.start.job=teacher",
        "student.start.stage=task",
        "data.batch=65",
    ]
    recipe = load(SHORT, set=changes)
    teacher, student = recipe.jobs["teacher"], recipe.jobs["student"]
    assert (recipe.data, recipe.seed) == (Data("digits", batch=65, augment=Augment(crop=2)), 5)
    assert teacher.start == Weights("t.safetensors")
    assert student.network == Net("resnet14", {"width": 2, "3": "three"})
    assert student.start == AfterStage("teacher", "task")
    transfer, task = student.stages
    assert transfer.players["student"].lr == Linear((0.01, 0.001))
    assert transfer.updates[0].transfer[0].weight == Constant(300.0)
    assert task.players["student"] == Player(
        lr=Milestones({0: 0.1, 50: 0.01, 75: 0.001}), optimizer=Optimizer("adam", weight_decay=0.0)
    )
    assert teacher.stages[0].players["student"].lr == Milestones(
        {0: 0.1, 50: 0.01}
    )  # the alias' other use is not touched
    assert teacher.stages[0].updates[0].task == (Term(Labels()), Term(Labels(smoothing=0.1)))


def test_set_with_nothing_after_the_sign_is_none(here: Path) -> None:
    text = SHORT.replace("batch: 32", "labels: 200")
    assert load(text, set=["data.labels="]).data.labels is None


def test_set_replaces_a_whole_job_by_a_network(here: Path) -> None:
    recipe = load(SHORT, set=["student=resnet14", "student.teacher=teacher"])
    assert recipe.jobs["student"] == Job(Net("resnet14"), teacher="teacher")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.mixup=1", "data.mixup: unknown key. Expected one of name, root, batch, accumulate, "),
        ("data.batch=abc", "data.batch: expected a whole number, got 'abc'"),
        ("data.btach=3", "data.btach: unknown key. Did you mean 'batch'?"),
        ("dta.batch=3", "Unknown key or job 'dta'. Did you mean 'data'?"),
        ("studnet.seed=3", "Unknown key or job 'studnet'. Did you mean 'student'?"),
        (
            "student.stages.trnsfer.lr=1",
            "jobs.student.stages has no item 'trnsfer' (its numbers: 0 to 1). Did you mean 'transfer'?",
        ),
        (
            "stages[2].lr=1",
            "jobs.student.stages has no item '2' (its numbers: 0 to 1). Choose from 'transfer', 'task'.",
        ),
        ("stages[0].stesp=1", "jobs.student.stages[0].stesp: unknown key. Did you mean 'steps'?"),
        ("data.agment.crop=1", "data.agment: unknown key. Did you mean 'augment'?"),
        ("data.batch.x=1", "data.batch is 32, so it has no 'x'"),
        ("name.x=1", "name is 'short', so it has no 'x'"),
        ("data.batch", "expected PATH=VALUE, such as data.batch=64"),
        ("=3", "expected PATH=VALUE, such as data.batch=64"),
        ("data..batch=3", "expected PATH=VALUE, such as data.batch=64"),
        (
            "about=[1",
            "invalid YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'",
        ),
        ("teacher.stages=", "jobs.teacher.stages: expected a list, got nothing"),
        ("data={name: digits, batch: 0}", "data.batch: expected at least 1, got 0"),
    ],
)
def test_a_wrong_set_names_itself(here: Path, change: str, said: str) -> None:
    lines = problems(SHORT, set=[change])
    assert any(line.startswith(f"set={change!r}: {said}") for line in lines), lines


def test_wrong_options_and_wrong_lines_are_reported_together(here: Path) -> None:
    said = problems(SHORT.replace("batch: 32", "batch: 0"), set=["foo", "x.y=1"], scale=-1, seed="a")
    assert [line.split(": ")[0] for line in said] == ["set='foo'", "set='x.y=1'", "scale=-1", "seed='a'", "r.yaml:2"]


def test_seed_and_data_root_are_taken_from_the_options(here: Path) -> None:
    recipe = load(SHORT, seed=7, data_root=here, set=["seed=3"])
    assert (recipe.seed, recipe.data.root) == (7, str(here))


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), 1e306])
def test_scale_must_be_positive(here: Path, scale: float) -> None:
    assert problems(SHORT, scale=scale) == [f"scale={scale}: expected a number above 0, at most 1000"]


def test_networks_from_python_files_need_trust(here: Path) -> None:
    text = SHORT.replace("resnet8", "nets/mine.py:make")
    said = "jobs.student.network: 'nets/mine.py:make' runs a Python file; allow it with trust_code=True"
    assert problems(text) == [f"r.yaml:7: {said}"]
    assert load(text, trust_code=True).jobs["student"].network.name == "nets/mine.py:make"


@pytest.mark.parametrize("change", ["student.network=a.py:f", "student=a.py:f", "student.network.name=a.py:f"])
def test_a_file_that_the_user_types_needs_no_trust(here: Path, change: str) -> None:
    assert load(SHORT, set=[change]).jobs["student"].network.name == "a.py:f"
    hidden = SHORT.replace("resnet26", "b.py:g")
    (said,) = problems(hidden, set=[change])
    assert said.startswith("r.yaml:4: jobs.teacher.network: 'b.py:g' runs a Python file")
    (said,) = problems(SHORT.replace("resnet8", "a.py:f"), set=["student.network.options.x=1", "student.seed=1"])
    assert said.startswith("r.yaml:7: jobs.student.network")  # the option does not name the file


def test_the_files_of_a_recipe_made_in_python_are_trusted(here: Path) -> None:
    recipe = load(SHORT.replace("resnet8", "a.py:f"), trust_code=True)
    assert load_recipe(recipe, seed=3).jobs == recipe.jobs
