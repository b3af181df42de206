"""Damaged run folders: the damage is detected, or makes no difference."""

import shutil
from pathlib import Path

import pytest

import flowstill as fs
from flowstill.engine import context
from flowstill.recipes.recipe import AfterStage, Job
from flowstill.reports import write_report
from flowstill.transfer.procedures import alone, two_stage
from support.compared_runs import PLAIN, assert_same, rows, stop_at, weights
from support.damage import flip
from support.engine_recipes import NET, recipe

STATE, PREVIOUS = "state.pt", "state-previous.pt"


def given():
    """A third job starts from what the student is after its first stage."""
    return recipe(steps=4, second=Job(NET, alone(2, 0.05), start=AfterStage("student", "transfer")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fs.train(given(), tmp_path_factory.mktemp("runs") / "whole", **PLAIN)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The teacher is done, the student in its second stage; the state was saved after every step."""
    path = tmp_path_factory.mktemp("runs") / "interrupted"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "SAVE_EVERY", 0.0)
        with pytest.raises(KeyboardInterrupt):
            fs.train(given(), path, on_step=stop_at(("student", "task", 3)), **PLAIN)
    return path


@pytest.fixture
def run(interrupted, tmp_path):
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


def resume(path, **options):
    return fs.train(given(), path, resume=True, **PLAIN, **options)


def test_the_previous_state_gives_the_same_result(run, whole, caplog):
    flip(run / STATE, 20_000)
    seen = []
    assert_same(resume(run, on_step=lambda *here: seen.append(here)), whole)
    assert seen[0] == ("student", "task", 3)  # the last state was after the third step, the one before after the second
    assert any("continues from the state saved before it" in message for message in caplog.messages)
    assert not any((run / name).exists() for name in (STATE, PREVIOUS))


def test_without_a_state_finished_jobs_stay_finished(run, whole):
    teacher = (run / "teacher.safetensors").stat().st_mtime_ns
    for name in (STATE, PREVIOUS):
        flip(run / name, 20_000)
    with pytest.raises(fs.RunError, match=r"Cannot resume from .*state\.pt.*so is .*state-previous\.pt"):
        resume(run)
    for name in (STATE, PREVIOUS):
        (run / name).unlink()
    seen = []
    assert_same(resume(run, on_step=lambda *here: seen.append(here)), whole)
    assert seen[0] == ("student", "transfer", 1)
    assert (run / "teacher.safetensors").stat().st_mtime_ns == teacher


@pytest.mark.parametrize("name", ["teacher", "student@transfer"])
def test_a_damaged_network_stops_the_run_that_needs_it(run, name):
    flip(run / f"{name}.safetensors", 5000)
    with pytest.raises(fs.RunError, match=rf"{name}\.safetensors' is not the network that the run saved.*Restore it"):
        resume(run)


def test_a_damaged_network_is_detected_wherever_it_is_read(whole, tmp_path):
    path = Path(shutil.copytree(whole.path, tmp_path / "run"))
    file = path / "student.safetensors"
    size = file.stat().st_size
    assert (
        fs.Run.open(path).summary["jobs"]["student"]["sha256"] == fs.Run.open(whole.path).summary.jobs["student"].sha256
    )
    given_student = recipe(steps=4)
    given_student = fs.Recipe("other", given_student.data, {"net": Job(NET, weights=str(file))})
    for place in (0, 9, size // 3, size // 2, size - 1):  # in the header, in its text, and in the numbers
        flip(file, place)
        for read in (
            lambda: fs.Run.open(path).network("student"),
            lambda: fs.Run.open(path).student,
            lambda: fs.evaluate(path, device="cpu"),
            lambda: write_report(path),
            lambda: resume(path),
        ):
            with pytest.raises(fs.RunError, match=r"student\.safetensors' is not the network that the run saved"):
                read()
        flip(file, place)
    flip(file, size // 2)
    with pytest.raises(fs.RunError, match=r"student\.safetensors' is not the network"):
        fs.train(given_student, tmp_path / "other", **PLAIN)
    assert not (tmp_path / "other").exists()
    flip(file, size // 2)
    assert resume(path).finished


def test_a_run_from_an_earlier_version_has_no_checksums(whole, tmp_path):
    path = Path(shutil.copytree(whole.path, tmp_path / "run"))
    text = (path / "summary.json").read_text()
    (path / "summary.json").write_text(text.replace('"sha256"', '"other"').replace('"kept"', '"other"'))
    flip(path / "student.safetensors", 50_000)
    assert weights(fs.Run.open(path))
    assert fs.Run.open(path).network("student") is not None


METRICS = {
    "missing": lambda text: None,
    "empty": lambda text: b"",
    "cut": lambda text: text[: len(text) // 2],
    "other columns": lambda text: text.replace(b"metric,value", b"metric").replace(b",0.", b";0."),
    "without a header": lambda text: text.split(b"\n", 1)[1],
    "garbage": lambda text: text[:100] + b"\x00\xff\xfe garbage,,\n\n" + text[100:],
    "all garbage": lambda text: b"\xff" * len(text),
}


@pytest.mark.parametrize("damage", METRICS)
def test_a_lost_log_does_not_end_the_run(run, whole, caplog, damage):
    path = run / "metrics.csv"
    before = path.read_bytes()
    after = METRICS[damage](before)
    if after is None:
        path.unlink()
    else:
        path.write_bytes(after)
    done = resume(run)
    assert any("metrics.csv' lacks measurements" in message for message in caplog.messages)
    for job in whole.jobs:
        assert (run / f"{job}.safetensors").read_bytes() == (whole.path / f"{job}.safetensors").read_bytes()
    assert [row for row in rows(whole) if row[0] == "second"] == [row for row in rows(done) if row[0] == "second"]
    assert (path.with_name("metrics-damaged.csv").read_bytes() == after) if after else True
    assert {tuple(row) for row in rows(done)} <= {tuple(row) for row in rows(whole)}


def test_a_state_of_another_run_is_refused(run, tmp_path):
    other = recipe(steps=4, student=alone(9, 0.05), second=Job(NET, alone(2, 0.05)))
    with pytest.raises(KeyboardInterrupt):
        fs.train(other, tmp_path / "other", on_step=stop_at(("student", "task", 8)), **PLAIN)
    shutil.copy(tmp_path / "other" / STATE, run / STATE)
    with pytest.raises(fs.RunError, match=r"state\.pt': it belongs to another run"):
        resume(run)
    wider = recipe(steps=4)
    with pytest.raises(KeyboardInterrupt):
        fs.train(wider, tmp_path / "wider", on_step=stop_at(("student", "task", 3)), **PLAIN)
    state = fs.runs.RunWriter(tmp_path / "wider").load_state()
    runner = state["loop"]["runners"]["student"]
    runner["learner"] = {name: tensor[:1] if tensor.ndim else tensor for name, tensor in runner["learner"].items()}
    fs.runs.RunWriter(run).save_state(state)
    with pytest.raises(fs.RunError, match="does not fit 'student'"):
        resume(run)


def test_a_run_killed_before_it_cleared_up_is_cleared_up_when_it_is_resumed(whole, interrupted, tmp_path):
    done = Path(shutil.copytree(whole.path, tmp_path / "done"))
    for name in (STATE, PREVIOUS):
        shutil.copy(interrupted / STATE, done / name)
    assert_same(resume(done), whole)
    assert not list(done.glob("state*.pt"))


def test_a_state_of_another_run_with_the_same_networks_is_refused(run, tmp_path):
    stages = two_stage("attention", transfer_steps=4, transfer_lr=0.01, task_steps=4, task_lr=0.05)
    other = recipe(steps=4, student=stages, second=Job(NET, alone(2, 0.05), start=AfterStage("student", "transfer")))
    with pytest.raises(KeyboardInterrupt):
        fs.train(other, tmp_path / "other", on_step=stop_at(("student", "task", 3)), **PLAIN)
    shutil.copy(tmp_path / "other" / STATE, run / STATE)
    with pytest.raises(fs.RunError, match=r"state\.pt': it belongs to another run"):
        resume(run)


LACKING = {
    "a weight": lambda state: state["loop"]["runners"]["student"]["learner"].popitem(),
    "all weights": lambda state: state["loop"]["runners"]["student"]["learner"].clear(),
    "the momenta": lambda state: state["loop"]["runners"]["student"]["movers"]["student"]["optimizer"]["state"].clear(),
    "the means": lambda state: state["loop"]["meters"].clear(),
    "the random sequences": lambda state: state.pop("draws"),
}


@pytest.mark.parametrize("what", LACKING)
def test_a_state_that_lacks_something_is_refused(run, what):
    writer = fs.runs.RunWriter(run)
    state = writer.load_state()
    LACKING[what](state)
    writer.save_state(state)
    with pytest.raises(fs.RunError, match="does not fit 'student'"):
        resume(run)


def test_a_state_of_seconds_that_are_no_number_is_refused(run):
    writer = fs.runs.RunWriter(run)
    writer.save_state({**writer.load_state(), "seconds": float("nan")})
    with pytest.raises(fs.RunError, match="'seconds'"):
        resume(run)


@pytest.mark.parametrize("job", ["teacher", "student"])
def test_a_finished_job_whose_network_is_gone_is_said(whole, tmp_path, job):
    path = Path(shutil.copytree(whole.path, tmp_path / "run"))
    (path / f"{job}.safetensors").unlink()
    with pytest.raises(fs.RunError, match=rf"{job}\.safetensors' is missing, .*finished job '{job}'. Restore it"):
        resume(path)
    with pytest.raises(fs.RunError, match=rf"{job}\.safetensors' is missing"):
        fs.Run.open(path).network(job)
    write_report(path)  # needs no network
