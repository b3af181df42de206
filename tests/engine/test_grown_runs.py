"""Recipes that grow or change after their run has started: trained jobs stay, and the others are trained."""

from dataclasses import replace

import pytest
import torch

import flowstill as fs
from flowstill.recipes.recipe import AfterStage, Ensemble, Job, Net
from flowstill.transfer.procedures import alone, joint, two_stage
from support.compared_runs import PLAIN, assert_same, rows, stop_at, weights
from support.engine_recipes import NET, recipe

SECOND = Job(NET, alone(5, 0.05), seed=2)
THIRD = Job(NET, joint("fsp", steps=4, lr=0.05), teacher="teacher")


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    return fs.train(recipe(second=SECOND, third=THIRD), tmp_path_factory.mktemp("runs") / "larger", **PLAIN)


def test_a_finished_run_can_be_extended_by_jobs(larger, tmp_path):
    fs.train(recipe(), tmp_path, **PLAIN)
    given = recipe(second=SECOND)
    with pytest.raises(KeyboardInterrupt):
        fs.train(given, tmp_path, resume=True, on_step=stop_at(("second", "task", 3)), **PLAIN)
    assert not fs.Run.open(tmp_path).finished
    seen = []
    run = fs.train(
        recipe(second=SECOND, third=THIRD), tmp_path, resume=True, on_step=lambda *here: seen.append(here), **PLAIN
    )
    assert seen[0] == ("second", "task", 4)
    assert {job for job, _, _ in seen} == {"second", "third"}
    assert_same(run, larger)
    assert run.finished


def test_a_run_killed_while_extended_does_not_count_as_finished(larger, tmp_path):
    fs.train(recipe(second=SECOND), tmp_path, **PLAIN)
    before = rows(fs.Run.open(tmp_path))

    def fail(*here):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fs.train(recipe(second=SECOND, third=THIRD), tmp_path, resume=True, on_step=fail, **PLAIN)
    run = fs.Run.open(tmp_path)
    assert not run.finished
    assert rows(run)[: len(before)] == before
    assert_same(fs.train(recipe(second=SECOND, third=THIRD), tmp_path, resume=True, **PLAIN), larger)


def test_started_jobs_must_not_change_and_others_may(larger, tmp_path):
    given = recipe(second=replace(SECOND, seed=9), third=THIRD)
    with pytest.raises(KeyboardInterrupt):
        fs.train(given, tmp_path, on_step=stop_at(("student", "task", 2)), **PLAIN)
    without = recipe(second=SECOND, third=THIRD)
    for job in ("teacher", "student"):
        changed = replace(without, jobs={**without.jobs, job: replace(without.jobs[job], seed=7)})
        with pytest.raises(fs.RunError, match=rf"its 'jobs\.{job}' differs"):
            fs.train(changed, tmp_path, resume=True, **PLAIN)
    lacking = replace(without, jobs={name: job for name, job in without.jobs.items() if name != "student"})
    with pytest.raises(fs.RunError, match=r"it has jobs\.student, which is missing now"):
        fs.train(lacking, tmp_path, resume=True, **PLAIN)
    assert_same(fs.train(without, tmp_path, resume=True, **PLAIN), larger)


def test_an_ensemble_of_trained_jobs_is_measured_later(tmp_path):
    fs.train(recipe(), tmp_path, **PLAIN)
    both = replace(recipe(), ensembles={"both": Ensemble(("teacher", "student"))})
    before = rows(fs.Run.open(tmp_path))
    run = fs.train(both, tmp_path, resume=True, on_step=lambda *here: pytest.fail("trained again"), **PLAIN)
    assert run.finished
    assert 0 <= run.summary["ensembles"]["both"]["accuracy"] <= 100
    assert rows(run) == before


def test_jobs_that_are_trained_leave_their_group(larger, tmp_path):
    fs.train(recipe(second=SECOND, third=THIRD), tmp_path, **PLAIN)
    seen = []
    grown = replace(recipe(second=SECOND, third=THIRD, twin=THIRD), together=(("third", "twin"),))
    run = fs.train(grown, tmp_path, resume=True, on_step=lambda *here: seen.append(here[0]), **PLAIN)
    assert set(seen) == {"twin"}
    one, other = weights(run, "twin"), weights(larger, "third")
    assert all(torch.equal(one[name], other[name]) for name in one)


def after(stage, steps=2, lr=0.05):
    return Job(NET, alone(steps, lr), start=AfterStage("student", stage))


def test_a_new_job_starts_from_a_saved_stage(tmp_path):
    first = fs.train(recipe(), tmp_path, **PLAIN)
    with pytest.raises(
        fs.RunError, match=r"'new' starts from 'student' after stage 'transfer', but .* did not save that network"
    ):
        fs.train(recipe(new=after("transfer")), tmp_path, resume=True, **PLAIN)
    run = fs.train(recipe(new=after("task", 1, 1e-30)), tmp_path, resume=True, **PLAIN)
    assert torch.equal(weights(run, "new")["conv1.weight"], weights(first)["conv1.weight"])


def test_a_job_that_changes_its_start_does_not_get_another(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fs.train(recipe(second=SECOND, new=after("task")), tmp_path, on_step=stop_at(("second", "task", 2)), **PLAIN)
    with pytest.raises(fs.RunError, match="did not save"):
        fs.train(recipe(second=SECOND, new=after("transfer")), tmp_path, resume=True, **PLAIN)


def test_an_unfinished_stage_is_saved_for_a_new_job(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fs.train(recipe(), tmp_path / "run", on_step=stop_at(("student", "transfer", 3)), **PLAIN)
    grown = recipe(new=after("transfer"))
    run = fs.train(grown, tmp_path / "run", resume=True, **PLAIN)
    assert_same(run, fs.train(grown, tmp_path / "whole", **PLAIN))


def test_weights_left_by_an_earlier_attempt_are_not_used(tmp_path):
    """A process that dies between keeping a stage's weights and saving its state leaves them behind."""
    changed = recipe(second=SECOND)
    changed = replace(changed, jobs={**changed.jobs, "student": replace(changed.jobs["student"], seed=5)})
    with pytest.raises(KeyboardInterrupt):
        fs.train(recipe(), tmp_path / "run", on_step=stop_at(("teacher", "task", 6)), **PLAIN)
    stray = tmp_path / "run" / "student@transfer.safetensors"
    stray.write_bytes(b"of another seed")
    with pytest.raises(KeyboardInterrupt):
        fs.train(changed, tmp_path / "run", resume=True, on_step=stop_at(("second", "task", 2)), **PLAIN)
    assert not stray.exists()


def test_a_job_draws_the_same_in_lockstep_and_added_later(tmp_path):
    """Hints between unequal channels have layers of their own, drawn at random."""
    stages = two_stage("hints", transfer_steps=3, transfer_lr=0.01, task_steps=2, task_lr=0.05)
    narrow = {
        name: Job(Net("resnet8", {"width": width}), stages, teacher="teacher") for name, width in (("a", 1), ("b", 2))
    }
    together = replace(recipe(**narrow), together=(("a", "b"),))
    whole = fs.train(together, tmp_path / "whole", **PLAIN)
    fs.train(recipe(a=narrow["a"]), tmp_path / "run", **PLAIN)
    run = fs.train(together, tmp_path / "run", resume=True, **PLAIN)
    for job in ("a", "b"):
        one, other = weights(run, job), weights(whole, job)
        assert all(torch.equal(one[name], other[name]) for name in one), job
