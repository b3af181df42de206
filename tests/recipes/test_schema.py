"""What the dataclasses of a recipe accept and refuse."""

from __future__ import annotations

from typing import Any

import pytest

from flowstill.errors import RecipeError
from flowstill.knowledge.labels import Labels
from flowstill.recipes.recipe import (
    AfterStage,
    Constant,
    Cosine,
    Data,
    Ensemble,
    Job,
    Linear,
    Milestones,
    Player,
    Recipe,
    Stage,
    Term,
    Update,
)
from flowstill.schema import validated


@pytest.mark.parametrize(
    ("value", "schedule"),
    [
        (3, Constant(3.0)),
        (0.1, Constant(0.1)),
        ({0: 0.1, 100: 0.01}, Milestones({0: 0.1, 100: 0.01})),
        ({"milestones": {0: 1}}, Milestones({0: 1.0})),
        ({"linear": [4, 1]}, Linear((4.0, 1.0))),
        ({"cosine": 0.4, "warmup": 0.2}, Cosine(0.4, 0.2)),
        (Cosine(0.1), Cosine(0.1)),
    ],
)
def test_short_forms_of_schedules(value: Any, schedule: object) -> None:
    assert Player(lr=value).lr == schedule


ANY_SCHEDULE = "a number, milestones {0: 0.1, 100: 0.01}, {linear: [4, 1]} or {cosine: 0.1}"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("fast", f"Player.lr: expected {ANY_SCHEDULE}, got 'fast'"),
        (True, f"Player.lr: expected {ANY_SCHEDULE}, got true"),
        ({}, f"Player.lr: expected {ANY_SCHEDULE}, got {{}}"),
        ({"step": 3}, f"Player.lr: expected {ANY_SCHEDULE}, got {{'step': 3}}"),
        ({0: "x"}, "Player.lr.milestones[0]: expected a number, got 'x'"),
        ({5: 0.1}, "Player.lr: milestones start at iteration 0, not 5"),
        ({"linear": [4]}, "Player.lr.linear: expected 2 items, got [4]"),
        ({"linear": [4, "x"]}, "Player.lr.linear[1]: expected a number, got 'x'"),
        ({"cosine": 0.1, "warmpu": 0.2}, "Player.lr.warmpu: unknown key. Did you mean 'warmup'?"),
        ({"cosine": 0.1, "warmup": 1}, "Player.lr.warmup: expected less than 1, got 1"),
    ],
)
def test_a_wrong_schedule_is_one_problem(value: Any, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Player(lr=value)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"job": "a"}, "Job.start: 'stage' is missing"),
        (
            {"job": "a", "stgae": "b"},
            "Job.start: 'stage' is missing\nJob.start.stgae: unknown key. Did you mean 'stage'?",
        ),
        ({"weights": 3}, "Job.start.weights: expected text, got 3"),
        ("x", "Job.start: expected a mapping with 'weights' or a mapping with 'job' and 'stage' or 'trained', got 'x'"),
    ],
)
def test_a_wrong_start_is_reported_as_the_form_that_was_meant(value: Any, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Job("resnet8", start=value)
    assert sorted(str(caught.value).splitlines()) == sorted(said.splitlines())


def stage(name: str = "task", **changes: Any) -> Stage:
    return validated(
        Stage, {"name": name, "steps": 5, "players": {"student": {}}, "cycle": [{"task": "labels"}]} | changes
    )


def test_short_forms_of_terms_and_cycles() -> None:
    long = stage(cycle=((Update(task=(Term(Labels(smoothing=0.1), Constant(2.0)),)),),))
    short = stage(cycle=[{"task": {"name": "labels", "smoothing": 0.1, "weight": 2}}])
    assert short == long
    assert Update(task="labels").task == (Term(Labels()),)


def test_a_short_stage_is_one_player_called_student() -> None:
    job = Job("resnet8", [{"name": "a", "steps": 5, "lr": 0.2, "task": "labels"}])
    expected = Stage("a", 5, {"student": Player(lr=Constant(0.2))}, ((Update(task=(Term(Labels()),)),),))
    assert job.stages == (expected,)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Update(), "an update needs at least one term"),
        (lambda: Update(task="labels", rule="adaptive_clip"), "adaptive_clip needs both a task and a transfer term"),
        (lambda: Update(task="lables"), "Unknown knowledge 'lables'. Did you mean 'labels'?"),
        (lambda: Update(task={"name": ["labels"]}), "expected a knowledge's name or a mapping"),
        (lambda: Update(task={"name": "labels", "smothing": 1}), "smothing: unknown key. Did you mean 'smoothing'?"),
        (lambda: stage(cycle=()), "a cycle needs at least one update"),
        (
            lambda: stage(cycle=[{"player": "studnet", "task": "labels"}]),
            "no player 'studnet'. Did you mean 'student'?",
        ),
        (lambda: stage(steps=0), "Stage.steps: expected at least 1, got 0"),
        (lambda: Job("resnet8", (stage("a"), stage("a"))), "stage names must differ, got a, a"),
        (lambda: Job("resnet8", (stage(cycle=[{"transfer": "fsp"}]),)), "the job names none; add 'teacher: JOB'"),
        (lambda: Player(modules=("studnet",)), "Player.modules[0]: expected 'student', 'adapters'"),
    ],
)
def test_recipes_that_cannot_run_are_refused(make: Any, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make()
    assert said in str(caught.value)


def recipe(jobs: dict[str, Job], **more: Any) -> Recipe:
    return Recipe("r", Data("digits"), jobs, **more)


ALONE = Job("resnet8", (stage(),))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: recipe({}), ["at least one job"]),
        (
            lambda: recipe({"teacher": ALONE, "b": Job("resnet8", teacher="tescher")}),
            ["Unknown job 'tescher'. Did you mean 'teacher'?"],
        ),
        (lambda: recipe({"a": Job("resnet8", teacher="a")}), ["'a'", "cannot build on itself"]),
        (
            lambda: recipe({"a": ALONE, "b": Job("resnet8", start=AfterStage("a", "taks"))}),
            ["'taks'", "Did you mean 'task'?"],
        ),
        (lambda: recipe({"a": ALONE}, ensembles={"e": Ensemble(("aa",))}), ["Unknown job 'aa'. Did you mean 'a'?"]),
        (lambda: recipe({"a": ALONE}, together=(("a", "c"),)), ["Unknown job 'c'."]),
        (lambda: recipe({"a": ALONE}, together=((),)), ["together", "no"]),
        (lambda: recipe({"a": Job("resnet8", teacher="b"), "b": Job("resnet8", teacher="a")}), ["circle"]),
    ],
)
def test_referenced_jobs_must_exist(make: Any, said: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        make()
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_jobs_come_after_the_jobs_that_they_build_on() -> None:
    jobs = {
        "c": Job("resnet8", (stage(),), start=AfterStage("b", "task")),
        "b": Job("resnet8", (stage(),), teacher="a"),
        "a": ALONE,
    }
    assert recipe(jobs).groups() == (("a",), ("b",), ("c",))


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (1, {0: 0.1, 32000: 0.01, 48000: 0.001}),
        (0.02, {0: 0.1, 640: 0.01, 960: 0.001}),
        (2, {0: 0.1, 64000: 0.01, 96000: 0.001}),
        (1e-5, {0: 0.1, 1: 0.01, 2: 0.001}),  # 0.32 and 0.48 both round to the start
        (3e-5, {0: 0.1, 1: 0.01, 2: 0.001}),  # 0.96 and 1.44 both round to 1
    ],
)
def test_scaled_milestones_keep_their_order_and_the_first_value(factor: float, expected: dict[int, float]) -> None:
    schedule = Milestones({48000: 0.001, 0: 0.1, 32000: 0.01}).scaled(factor)
    assert schedule.milestones == expected
    assert list(schedule.milestones) == sorted(expected)
    assert schedule.at(0, 1) == 0.1
