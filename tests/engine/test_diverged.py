"""Jobs with losses or weights that are not finite: they stop, say why, and show no result; others continue unchanged."""

import json
from dataclasses import replace

import pytest
import torch

import flowstill as fs
from flowstill.data.batch import Batch
from flowstill.engine.finite import LOOK_EVERY, MOST_SKIPPED
from flowstill.recipes.recipe import AfterStage, Ensemble, Job, Optimizer, Player, Recipe
from flowstill.reports import table_text
from flowstill.reports.results import results, verdict
from flowstill.transfer.procedures import alone, two_stage
from support.compared_runs import PLAIN, assert_same, stop_at, weights
from support.diverging import MUCH, diverging, failing
from support.engine_recipes import DATA, NET, recipe
from support.stage_runners import kept, moved, stage_runner
from support.with_dropout import HALF


def given_object(first, steps=120, count=10**9, **options):
    """A recipe of one job whose network object fails from one forward on, and the run's networks."""
    network = failing(first, count)
    net = fs.Net("object:Failing", {"parameters": sum(p.numel() for p in network.parameters())})
    return Recipe("test", DATA, {"student": Job(net, alone(steps, 0.01))}, **options), {"student": network}


def test_a_job_stops_within_fifty_updates_and_names_what_is_not_finite(tmp_path, caplog):
    given, networks = given_object(first=61)
    seen = []
    run = fs.train(given, tmp_path, networks=networks, on_step=lambda *here: seen.append(here[2]), **PLAIN)
    assert 61 <= seen[-1] + 1 <= 61 + LOOK_EVERY
    row = run.summary.jobs["student"]
    assert row.diverged.startswith(f"task, update {row.steps}: not finite: the loss 'labels'; weights 'body.1.weight'")
    assert row.diverged.endswith("first in the output of 'body.1'")  # the weights are lost by then
    assert row.accuracy is None
    assert run.finished
    assert not (tmp_path / "student.safetensors").exists()
    json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    (said,) = [message for message in caplog.messages if "not finite" in message]
    assert said.startswith("job 'student' is stopped: task, update ")
    assert "set='student.stages.task.lr=0.001'" in said
    assert "--precision 32" not in said
    with pytest.raises(fs.RunError, match="'student' has no network: task, update"):
        run.network()


def test_the_first_module_is_named_while_the_weights_are_sound(tmp_path):
    """The last of a few updates is the first that fails, and none follows it that could spoil the weights."""
    given, networks = given_object(first=2, on_nonfinite="skip")
    why = fs.train(given, tmp_path, networks=networks, **PLAIN).summary.jobs["student"].diverged
    assert why.startswith(f"task, update {MOST_SKIPPED + 1}: {MOST_SKIPPED} updates in a row were skipped")
    assert "not finite in the last: 'labels'" in why
    assert why.endswith("first in the output of 'norm'")


def test_a_running_variance_that_is_not_finite_stops_a_job_with_finite_losses(tmp_path):
    network = fs.create("resnet8", num_classes=10, in_channels=1, width=0.5)
    variance = network.layer1[0].bn1.running_var
    given = replace(recipe(), jobs={"student": Job(NET, alone(3, 0.01))})
    variance[1] = float("inf")
    with pytest.raises(fs.NetworkError, match=r"'layer1.0.bn1.running_var' are not finite"):
        fs.train(given, tmp_path / "before", networks={"student": network}, **PLAIN)

    made, plain = [], torch.nn.BatchNorm2d.forward

    def noted(self, images):
        made.append(self)
        return plain(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.BatchNorm2d, "forward", noted)
        spoil = lambda *here: made[-1].running_var.fill_(float("inf"))  # noqa: E731
        run = fs.train(given, tmp_path / "during", on_step=spoil, **PLAIN)
    why = run.summary.jobs["student"].diverged
    assert why.startswith("task, update 2: not finite: the weight 'layer3.")
    assert why.endswith(".running_var'")


def test_jobs_that_build_on_a_diverged_job_are_not_run_and_others_are(tmp_path):
    given = recipe(steps=3)
    jobs = {
        **given.jobs,
        "teacher": diverging(3, seed=1),
        "after": Job(NET, alone(3, 0.05), start=AfterStage("student", "transfer")),
        "alone": Job(NET, alone(3, 0.05)),
    }
    both = {"both": Ensemble(("alone", "after")), "one": Ensemble(("alone",))}
    run = fs.train(replace(given, jobs=jobs, ensembles=both), tmp_path, **PLAIN)
    assert run.finished
    assert run.summary.failed == {
        "teacher": run.summary.jobs["teacher"].diverged,
        "student": "not run, as 'teacher' diverged",
        "after": "not run, as 'student' was not run",
        "both": "not run, as 'after' was not run",
    }
    assert run.summary.jobs["alone"].accuracy is not None
    assert run.summary.ensembles["one"].accuracy is not None
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["alone"]
    apart = fs.train(replace(given, jobs={"alone": jobs["alone"]}), tmp_path / "apart", **PLAIN)
    assert torch.equal(weights(run, "alone")["conv1.weight"], weights(apart, "alone")["conv1.weight"])
    assert list(fs.evaluate(run, device="cpu")) == ["alone", "one"]
    assert {row.name: row.missing for row in results(run)} == {
        "teacher": "diverged",
        "student": "not run",
        "after": "not run",
        "alone": "",
        "both": "not run",
        "one": "",
    }
    assert [line.split()[2] for line in table_text(run).splitlines()[2:4]] == ["diverged", "not"]
    assert "student: not run, as 'teacher' diverged." not in verdict(run)[0]
    assert verdict(run)[1] == "student: not run, as 'teacher' diverged."
    assert "teacher: diverged: task, update" in (tmp_path / "report.html").read_text()


def test_a_job_starts_from_a_stage_that_ended_before_the_other_job_diverged(tmp_path):
    stages = two_stage("fsp", transfer_steps=3, transfer_lr=0.01, task_steps=3, task_lr=MUCH)
    after = Job(NET, alone(2, 0.05), start=AfterStage("student", "transfer"))
    run = fs.train(recipe(student=stages, after=after), tmp_path / "1", **PLAIN)
    assert run.summary.jobs["student"].diverged.startswith("task, update ")
    assert run.summary.jobs["student"].steps > 3
    sound = two_stage("fsp", transfer_steps=3, transfer_lr=0.01, task_steps=3, task_lr=0.05)
    other = fs.train(recipe(student=sound, after=after), tmp_path / "2", **PLAIN)
    assert (run.path / "after.safetensors").read_bytes() == (other.path / "after.safetensors").read_bytes()
    lower = replace(recipe(student=sound, after=after))
    with pytest.raises(fs.RunError, match=r"its 'jobs\.student' differs"):
        fs.train(lower, run.path, resume=True, **PLAIN)


@pytest.mark.parametrize("lost", ["a", "b"])
def test_in_lockstep_the_others_continue_unchanged(tmp_path, lost):
    """Dropout: the others' masks stay their own, also when the run is interrupted after one of them has stopped."""
    stage = alone(5, 0.05)
    jobs = {name: Job(HALF, alone(5, MUCH) if name == lost else stage) for name in ("a", "b")}
    second = {name: replace(job, stages=(*job.stages, replace(stage[0], name="more"))) for name, job in jobs.items()}
    together = Recipe("test", DATA, second, together=(("a", "b"),))
    (sound,) = {"a", "b"} - {lost}
    run = fs.train(together, tmp_path / "1", **PLAIN)
    without = fs.train(Recipe("test", DATA, {sound: second[sound]}), tmp_path / "2", **PLAIN)
    assert run.summary.jobs[lost].missing == "diverged"
    assert (run.path / f"{sound}.safetensors").read_bytes() == (without.path / f"{sound}.safetensors").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        fs.train(together, tmp_path / "3", on_step=stop_at((sound, "task", 4)), **PLAIN)
    assert lost in fs.Run.open(tmp_path / "3").summary.failed
    again = fs.train(together, tmp_path / "3", resume=True, **PLAIN)
    assert (again.path / f"{sound}.safetensors").read_bytes() == (run.path / f"{sound}.safetensors").read_bytes()
    assert again.summary.failed == run.summary.failed


def test_a_diverged_job_is_done_until_its_recipe_changes(tmp_path):
    given = recipe(steps=3, student=alone(3, MUCH))
    run = fs.train(replace(given, ensembles={"both": Ensemble(("teacher", "student"))}), tmp_path / "1", **PLAIN)
    assert set(run.summary.failed) == {"student", "both"}
    steps = []
    note = {"resume": True, "on_step": lambda *here: steps.append(here), **PLAIN}
    fs.train(replace(given, ensembles={"both": Ensemble(("teacher", "student"))}), run.path, **note)
    assert not steps
    sound = replace(recipe(steps=3, student=alone(3, 0.05)), ensembles={"both": Ensemble(("teacher", "student"))})
    mended = fs.train(sound, run.path, **note)
    assert {job for job, _, _ in steps} == {"student"}
    assert not mended.summary.failed
    other = fs.train(sound, tmp_path / "2", **PLAIN)
    for job in mended.jobs:
        assert (mended.path / f"{job}.safetensors").read_bytes() == (other.path / f"{job}.safetensors").read_bytes()
    measured = [[row for row in one.metrics() if row.metric != "images_per_second"] for one in (mended, other)]
    assert measured[0] == measured[1]  # the first attempt's rows are gone


def test_a_diverged_job_of_an_unfinished_run_is_trained_again_once_its_recipe_changes(tmp_path):
    def jobs(rate):
        return replace(recipe(), jobs={"bad": Job(NET, alone(3, rate)), "good": Job(NET, alone(3, 0.05), seed=2)})

    with pytest.raises(KeyboardInterrupt):
        fs.train(jobs(MUCH), tmp_path / "1", on_step=stop_at(("good", "task", 2)), **PLAIN)
    run = fs.train(jobs(0.05), tmp_path / "1", resume=True, **PLAIN)
    other = fs.train(jobs(0.05), tmp_path / "2", **PLAIN)
    for job in run.jobs:
        assert (run.path / f"{job}.safetensors").read_bytes() == (other.path / f"{job}.safetensors").read_bytes()


def test_distill_raises_once_the_rest_is_done_and_leaves_the_object_alone(tmp_path):
    teacher, student = (fs.create("resnet8", num_classes=10, in_channels=1, width=0.5) for _ in range(2))
    before = kept(student)
    changes = ["data.batch=32", f"student.stages.joint.lr={MUCH}"]
    with pytest.raises(fs.DivergedError, match="The student has no network: joint, update"):
        fs.distill(teacher, student, "digits", out=tmp_path, alone=True, scale=0.0001, set=changes, **PLAIN)
    assert not moved(before, student)
    run = fs.Run.open(tmp_path)
    assert run.finished
    assert run.summary.jobs["student_alone"].accuracy is not None
    (row,) = [row for row in results(run) if row.name == "student"]
    assert (row.accuracy, row.gain, row.missing) == (None, None, "diverged")


def batches(count):
    random = torch.Generator().manual_seed(0)
    rows = torch.arange(16)
    return [
        Batch(torch.randn(16, 1, 8, 8, generator=random), rows % 10, rows, torch.zeros_like(rows), 0, 3)
        for _ in range(count)
    ]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_skipped_update_leaves_no_trace(optimizer):
    """Weights, momenta and BatchNorm's statistics after it are those of a stage that never saw its batch."""
    first, bad, last = batches(3)
    bad.images[3, 0, 2, 2] = float("inf")
    stage = replace(alone(3, 0.1)[0], players={"student": Player(lr=0.1, optimizer=Optimizer(optimizer))})
    runners = []
    for seen in ((first, bad, last), (first, last)):
        torch.manual_seed(0)
        network = fs.create("resnet8", num_classes=10, in_channels=1, width=0.5)
        runner = stage_runner(stage, network, network, (1, 8, 8))
        runner._step.skips = True
        losses = [runner.update(0, batch, None, 0) for batch in seen]
        assert [one is None for one in losses] == [batch is bad for batch in seen]
        runners.append(runner)
    skipping, plain = (runner.state() for runner in runners)
    torch.testing.assert_close(skipping, plain, rtol=0, atol=0)
    assert runners[0].lost == ["'labels'"]


def test_skipped_updates_are_counted_and_the_job_continues(tmp_path):
    given, networks = given_object(first=3, steps=8, count=2, on_nonfinite="skip")
    run = fs.train(given, tmp_path, networks=networks, **PLAIN)
    assert not run.summary.failed
    counted = {row.step: row.value for row in run.metrics() if row.metric == "train/skipped"}
    assert counted == {3: 1.0, 4: 1.0}
    losses = {row.step for row in run.metrics() if row.metric == "train/labels"}
    assert losses == {1, 2, 5, 6, 7, 8}
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


def test_skipping_changes_nothing_if_everything_is_finite(tmp_path):
    runs = [fs.train(replace(recipe(), on_nonfinite=what), tmp_path / what, **PLAIN) for what in ("stop", "skip")]
    assert_same(*runs)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["stop", "skip"])
def test_two_processes_agree_on_what_diverged(tmp_path, what):
    given = replace(recipe(steps=3, student=alone(3, MUCH), good=Job(NET, alone(3, 0.05), seed=3)), on_nonfinite=what)
    run = fs.train(replace(given, together=()), tmp_path, devices=2, **PLAIN)
    assert run.finished
    assert set(run.summary.failed) == {"student"}
    assert run.summary.jobs["good"].accuracy is not None
