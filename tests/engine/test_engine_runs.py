"""Whole runs: a killed one resumes exactly, jobs build on one another, and what cannot run creates nothing."""

import signal
from dataclasses import replace

import pytest
import torch

import flowstill as fs
from flowstill.data import open_data
from flowstill.recipes.recipe import (
    AdaptiveClip,
    AfterStage,
    Ensemble,
    Job,
    Milestones,
    Net,
    Optimizer,
    Player,
    Recipe,
    Stage,
    Update,
)
from flowstill.transfer.procedures import alone, joint, two_stage
from support.compared_runs import PLAIN, assert_near, assert_same, resumed, stop_at, weights
from support.engine_recipes import DATA, NET, recipe
from support.with_dropout import HALF
from support.without_batchnorm import TWO_SECTIONS


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return fs.train(recipe(), tmp_path_factory.mktemp("runs") / "whole", **PLAIN)


@pytest.mark.parametrize("where", [("teacher", "task", 3), ("student", "transfer", 4), ("student", "task", 2)])
def test_interrupted_equals_uninterrupted_bit_for_bit(finished, tmp_path, where):
    run = resumed(recipe(), tmp_path, where)
    assert_same(run, finished)
    for job, told in finished.summary["jobs"].items():
        assert {**run.summary["jobs"][job], "seconds": 0} == {**told, "seconds": 0}


def test_a_finished_run_is_returned_unchanged(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.path.iterdir()}
    fs.train(recipe(), finished.path, resume=True, **PLAIN)
    assert {path: path.stat().st_mtime_ns for path in finished.path.iterdir()} == before


def test_another_recipe_is_not_resumed_and_a_run_not_overwritten(finished):
    with pytest.raises(fs.FlowstillError, match="'seed' differs"):
        fs.train(replace(recipe(), seed=3), finished.path, resume=True, **PLAIN)
    with pytest.raises(fs.FlowstillError, match="resume=True"):
        fs.train(recipe(), finished.path, **PLAIN)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    refused = []

    def meddle(*here):
        if here == ("teacher", "task", 2):
            with pytest.raises(fs.RunError, match="Another process is training") as error:
                fs.train(recipe(), tmp_path, resume=True, **PLAIN)
            refused.append(error)

    run = fs.train(recipe(), tmp_path, on_step=meddle, **PLAIN)
    assert refused
    assert run.finished


def test_auto_precision_is_chosen_once_and_kept(tmp_path):
    options = {**PLAIN, "precision": "auto"}
    with pytest.raises(KeyboardInterrupt):
        fs.train(recipe(steps=4), tmp_path, on_step=stop_at(("student", "transfer", 2)), **options)
    chosen = fs.Run.open(tmp_path).recipe["run"]["precision"]
    assert chosen["dtype"] in ("32", "bf16")
    assert chosen["layout"] in ("contiguous", "channels_last")
    run = fs.train(recipe(steps=4), tmp_path, resume=True, **options)
    assert run.recipe["run"]["precision"] == chosen == run.summary["precision"]


def test_the_teacher_is_the_same_before_and_after(finished, tmp_path):
    given = recipe()
    teacher = Job(NET, weights=str(finished.path / "teacher.safetensors"))
    given = replace(given, jobs={**given.jobs, "teacher": teacher})
    run = fs.train(given, tmp_path, **PLAIN)
    before, after = weights(finished, "teacher"), weights(run, "teacher")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert run.summary["jobs"]["teacher"]["steps"] == 0


def test_a_job_with_weights_does_not_block_its_group(finished, tmp_path):
    stages = two_stage("fsp", transfer_steps=2, transfer_lr=0.01, task_steps=2, task_lr=0.05)
    second = Job(NET, stages, teacher="teacher", weights=str(finished.path / "student.safetensors"))
    given = recipe(student=stages, b=second)
    run = fs.train(replace(given, together=(("student", "b"),)), tmp_path, **PLAIN)
    assert [run.summary["jobs"][job]["steps"] for job in ("student", "b")] == [4, 0]
    one, other = weights(run, "b"), weights(finished)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_job_starts_after_another_jobs_stage(tmp_path):
    stages = two_stage("fsp", transfer_steps=3, transfer_lr=0.01, task_steps=2, task_lr=0.05)
    second = Job(NET, alone(2, 0.05), start=AfterStage("student", "transfer"))
    run = fs.train(recipe(student=stages, second=second), tmp_path, **PLAIN)
    one, other = weights(run), weights(run, "second")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_jobs_in_lockstep_equal_jobs_one_after_another(tmp_path):
    stages = two_stage("fsp", transfer_steps=4, transfer_lr=0.01, task_steps=4, task_lr=0.05)
    gram = joint("fsp", steps=4, lr=0.05)
    jobs = {
        "b": Job(NET, stages, teacher="teacher"),
        "c": Job(Net("resnet14", {"width": 0.5}), stages, teacher="teacher"),
    }
    apart = recipe(student=stages, **jobs)
    together = replace(apart, together=(("student", "b", "c"),))
    runs = [fs.train(r, tmp_path / str(i), **PLAIN) for i, r in enumerate((apart, together))]
    for job in ("student", "b", "c"):
        one, other = (weights(run, job) for run in runs)
        assert all(torch.equal(one[name], other[name]) for name in one), job
    with pytest.raises(fs.FlowstillError, match="differ in their stages"):
        replace(apart, jobs={**apart.jobs, "b": Job(NET, gram, teacher="teacher")}, together=(("student", "b"),))


def test_jobs_in_lockstep_draw_independently(tmp_path):
    """Dropout: other jobs do not change a job's masks, and a killed run continues each job's own sequence."""
    jobs = {name: Job(HALF, alone(5, lr)) for name, lr in (("a", 0.05), ("b", 0.1))}
    apart = Recipe("test", DATA, jobs)
    together = replace(apart, together=(("a", "b"),))
    alone_each, beside = (fs.train(given, tmp_path / name, **PLAIN) for name, given in (("1", apart), ("2", together)))
    for job in jobs:
        one, other = weights(alone_each, job), weights(beside, job)
        assert all(torch.equal(one[name], other[name]) for name in one), job
    assert_same(resumed(together, tmp_path / "3", ("a", "task", 3)), beside)


def test_evaluation_and_ensembles_agree_with_plain_torch(tmp_path):
    both = replace(
        recipe(steps=20),
        ensembles={"mean": Ensemble(("teacher", "student")), "logits": Ensemble(("teacher", "student"), "logits")},
    )
    run = fs.train(both, tmp_path, **PLAIN)
    data = open_data(DATA, seed=0)
    pairs = list(data.test_batches(batch=100, device=torch.device("cpu")))
    images, labels = (torch.cat([p[i] for p in pairs]) for i in (0, 1))
    with torch.no_grad():
        outputs = {job: run.network(job)(images) for job in ("teacher", "student")}
    right = lambda output: 100 * float((output.argmax(1) == labels).float().mean())  # noqa: E731
    for job, output in outputs.items():
        assert run.summary["jobs"][job]["accuracy"] == pytest.approx(right(output), abs=1e-3)
    mean = sum(output.softmax(1) for output in outputs.values())
    assert run.summary["ensembles"]["mean"]["accuracy"] == pytest.approx(right(mean), abs=1e-3)
    assert run.summary["ensembles"]["logits"]["accuracy"] == pytest.approx(right(sum(outputs.values())), abs=1e-3)
    again = fs.evaluate(run, device="cpu")
    assert again["student"]["accuracy"] == pytest.approx(run.summary["jobs"]["student"]["accuracy"], abs=1e-4)


def test_global_state_is_restored(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    fs.train(recipe(steps=2), tmp_path, **PLAIN)
    assert torch.equal(torch.rand(3), expected)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_player_with_nothing_to_move_is_refused(tmp_path):
    stage = Stage(
        "both",
        3,
        {"student": Player(lr=0.05), "idle": Player(modules=("aggregate",), lr=0.05)},
        ((Update("student", task="labels"), Update("idle", task="labels")),),
    )
    with pytest.raises(fs.FlowstillError, match="'idle' moves aggregate, but no term of the stage has such a module"):
        fs.train(recipe(student=(stage,)), tmp_path, **PLAIN)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Optimizer(momentum=0.0, nesterov=True), "nesterov needs"),
        (lambda: Player(lr=-0.1), "at least 0, got -0.1"),
        (lambda: Player(lr=Milestones({0: 0.1, 5: -1})), "at least 0, got -1"),
    ],
)
def test_values_that_would_fail_midway_are_refused_at_once(change, message):
    with pytest.raises(fs.RecipeError, match=message):
        change()


def test_too_many_labels_are_refused_before_anything_is_created(tmp_path):
    few = recipe()
    few = replace(few, jobs={**few.jobs, "student": replace(few.jobs["student"], labels=99999)})
    with pytest.raises(fs.DataError, match="'labels' is 99999"):
        fs.train(few, tmp_path / "run", **PLAIN)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """BatchNorm normalises by each process's own half, so a network without it is compared."""
    for name, stages in {
        "two-stage": two_stage("fsp", transfer_steps=4, transfer_lr=0.01, task_steps=4, task_lr=0.05),
        "clip": joint("fsp", steps=4, lr=0.05, rule=AdaptiveClip()),
    }.items():
        teacher, student = Job(TWO_SECTIONS, alone(4, 0.05), seed=1), Job(TWO_SECTIONS, stages, teacher="teacher")
        given = Recipe("test", DATA, {"teacher": teacher, "student": student})
        parts = replace(given, data=replace(DATA, accumulate=3))
        runs = [fs.train(given, tmp_path / f"{name}{n}", devices=n, **PLAIN) for n in (1, 2)]
        runs.append(fs.train(parts, tmp_path / f"{name}-parts", devices=2, **PLAIN))
        for other in runs[1:]:
            assert_near(other, runs[0])
        assert runs[0].summary["jobs"]["student"]["accuracy"] == pytest.approx(
            runs[1].summary["jobs"]["student"]["accuracy"], abs=0.5
        )
