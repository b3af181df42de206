"""The loop: what moves, what stays, and that a killed run goes on exactly."""

import csv
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import flowstill as fs
from flowstill.data.spec import Augment, Data
from flowstill.engine.seeds import derive
from flowstill.recipes.schema import (
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
    Weights,
)  # fmt: skip
from flowstill.transfer.procedures import alone, cyclic, joint, two_stage

NET = Net("resnet8", {"width": 0.5})
DATA = Data("digits", batch=32, augment=Augment(shift=1))
PLAIN = {"device": "cpu", "precision": "32", "progress": False}


def recipe(*, student=None, steps=6, **jobs):
    stages = student or two_stage(
        "fsp", transfer_steps=steps, transfer_lr=Milestones({0: 0.01, 3: 0.001}), task_steps=steps, task_lr=0.05
    )
    return Recipe(
        "test",
        DATA,
        {"teacher": Job(NET, alone(steps, 0.05), seed=1), "student": Job(NET, stages, teacher="teacher"), **jobs},
    )


def rows(run):
    with open(run.path / "metrics.csv", newline="") as file:
        return [row for row in csv.reader(file) if row[3] != "images_per_second"]


def fresh_student():
    """The state of a job's student before its first step."""
    with torch.random.fork_rng():
        torch.manual_seed(derive(0, 0, "init"))
        return fs.create("resnet8", num_classes=10, in_channels=1, width=0.5).state_dict()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return fs.train(recipe(), tmp_path_factory.mktemp("runs") / "whole", **PLAIN)


@pytest.mark.parametrize("where", [("teacher", "task", 3), ("student", "transfer", 4), ("student", "task", 2)])
def test_interrupted_equals_uninterrupted_bit_for_bit(finished, tmp_path, where):
    def interrupt(*here):
        if here == where:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fs.train(recipe(), tmp_path, on_step=interrupt, **PLAIN)
    seen = []
    run = fs.train(recipe(), tmp_path, resume=True, on_step=lambda *here: seen.append(here), **PLAIN)
    assert seen[0] == (where[0], where[1], where[2] + 1)
    for job in ("teacher", "student"):
        assert (run.path / f"{job}.safetensors").read_bytes() == (finished.path / f"{job}.safetensors").read_bytes()
    assert rows(run) == rows(finished)
    for job, told in finished.summary["jobs"].items():
        assert {**run.summary["jobs"][job], "seconds": 0} == {**told, "seconds": 0}


def test_a_finished_run_is_returned_as_it_is(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.path.iterdir()}
    fs.train(recipe(), finished.path, resume=True, **PLAIN)
    assert {path: path.stat().st_mtime_ns for path in finished.path.iterdir()} == before


def test_another_recipe_is_not_resumed_nor_is_a_run_overwritten(finished):
    with pytest.raises(fs.FlowstillError, match="'seed' differs"):
        fs.train(replace(recipe(), seed=3), finished.path, resume=True, **PLAIN)
    with pytest.raises(fs.FlowstillError, match="--resume"):
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


def test_stage_one_leaves_the_classifier_alone_and_trains_the_rest(tmp_path):
    transfer = two_stage(
        "fsp", transfer_steps=3, transfer_lr=0.01, task_steps=1, task_lr=0.0, optimizer=Optimizer(weight_decay=0.1)
    )
    run = fs.train(recipe(student=transfer), tmp_path, **PLAIN)
    fresh = fresh_student()
    trained = load_file(run.path / "student.safetensors")
    # Neither gradient nor decay reaches the head in stage 1, and stage 2 has a learning rate of zero.
    assert torch.equal(trained["fc.weight"], fresh["fc.weight"])
    assert not torch.equal(trained["conv1.weight"], fresh["conv1.weight"])
    assert int(trained["bn1.num_batches_tracked"]) == 4  # train mode in both stages


def test_the_teacher_is_the_same_before_and_after(finished, tmp_path):
    weights = finished.path / "teacher.safetensors"
    given = recipe()
    given = replace(given, jobs={**given.jobs, "teacher": Job(NET, weights=str(weights))})
    run = fs.train(given, tmp_path, **PLAIN)
    before, after = load_file(weights), load_file(run.path / "teacher.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert run.summary["jobs"]["teacher"]["steps"] == 0


def test_the_optimiser_is_fresh_in_every_stage(tmp_path):
    """Momentum that outlived stage 1 would move the head's neighbours in a stage of zero learning rate's first step."""
    once = fs.train(
        recipe(student=two_stage("fsp", transfer_steps=3, transfer_lr=0.01, task_steps=1, task_lr=0.05)),
        tmp_path / "a",
        **PLAIN,
    )
    start = load_file(once.path / "student.safetensors")
    first_only = recipe(student=two_stage("fsp", transfer_steps=3, transfer_lr=0.01, task_steps=1, task_lr=0.0))
    after_first = load_file(fs.train(first_only, tmp_path / "b", **PLAIN).path / "student.safetensors")
    network = fs.create("resnet8", num_classes=10, in_channels=1, width=0.5)
    network.load_state_dict(after_first)
    # The second stage alone, from the weights that the first left, must give the same: nothing else is carried over.
    path = tmp_path / "first.safetensors"
    from flowstill.nets import save_weights

    save_weights(network, path)
    alone_then = recipe(student=alone(1, 0.05))
    jobs = {
        "teacher": alone_then.jobs["teacher"],
        "student": replace(alone_then.jobs["student"], start=Weights(str(path))),
    }
    again = load_file(fs.train(replace(alone_then, jobs=jobs), tmp_path / "c", **PLAIN).path / "student.safetensors")
    for name in start:
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(again[name], start[name], rtol=0, atol=0)


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
        one, other = (load_file(run.path / f"{job}.safetensors") for run in runs)
        assert all(torch.equal(one[name], other[name]) for name in one), job
    with pytest.raises(fs.FlowstillError, match="row of stages"):
        replace(apart, jobs={**apart.jobs, "b": Job(NET, gram, teacher="teacher")}, together=(("student", "b"),))


def test_a_job_starts_after_another_jobs_stage(tmp_path):
    stages = two_stage("fsp", transfer_steps=3, transfer_lr=0.01, task_steps=2, task_lr=0.05)
    second = Job(NET, alone(2, 0.05), start=AfterStage("student", "transfer"))
    run = fs.train(recipe(student=stages, second=second), tmp_path, **PLAIN)
    one, other = load_file(run.path / "student.safetensors"), load_file(run.path / "second.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_cycle_runs_its_updates_in_turn(tmp_path):
    """Two transfers in turn, each with one section: after one step only the first has acted."""
    first, second = fs.FSP(sections=(0,)), fs.FSP(sections=(2,))
    runs = {steps: fs.train(recipe(student=cyclic([first, second], steps=steps, lr=0.01)), tmp_path / str(steps), **PLAIN)
            for steps in (1, 2)}  # fmt: skip
    one, two = (load_file(runs[steps].path / "student.safetensors") for steps in (1, 2))
    start = fresh_student()
    moved = lambda a, b: {name.split(".")[0] for name in a if not torch.equal(a[name], b[name])}  # noqa: E731
    assert moved(one, start) == {"conv1", "bn1", "layer1"}
    assert moved(two, one) == {"conv1", "bn1", "layer1", "layer2", "layer3"}
    assert moved(two, start) == moved(two, one)


def test_a_player_with_nothing_to_move_is_refused(tmp_path):
    stage = Stage("both", 3, {"student": Player(lr=0.05), "idle": Player(modules=("aggregate",), lr=0.05)},
                  ((Update("student", task="labels"), Update("idle", task="labels")),))  # fmt: skip
    with pytest.raises(fs.FlowstillError, match="'idle' moves aggregate, but no term of the stage brings any"):
        fs.train(recipe(student=(stage,)), tmp_path, **PLAIN)
    assert not list(tmp_path.iterdir())


def test_update_without_batchnorm_leaves_its_statistics(tmp_path):
    stage = Stage("task", 2, {"student": Player(lr=0.05)}, ((Update(task="labels", update_batchnorm=False),),))
    run = fs.train(recipe(student=(stage,)), tmp_path, **PLAIN)
    state = load_file(run.path / "student.safetensors")
    assert int(state["bn1.num_batches_tracked"]) == 0
    assert torch.equal(state["bn1.running_mean"], torch.zeros_like(state["bn1.running_mean"]))


def test_evaluation_and_ensembles_agree_with_plain_torch(tmp_path):
    both = replace(
        recipe(steps=20),
        ensembles={"mean": Ensemble(("teacher", "student")), "logits": Ensemble(("teacher", "student"), "logits")},
    )
    run = fs.train(both, tmp_path, **PLAIN)
    from flowstill.data import open_data

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


def test_nothing_global_is_left_behind(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    fs.train(recipe(steps=2), tmp_path, **PLAIN)
    assert torch.equal(torch.rand(3), expected)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_auto_precision_is_chosen_once_and_kept(tmp_path):
    options = {"device": "cpu", "progress": False}

    def interrupt(*here):
        if here == ("student", "transfer", 2):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fs.train(recipe(steps=4), tmp_path, precision="auto", on_step=interrupt, **options)
    chosen = fs.Run.open(tmp_path).recipe["run"]["precision"]
    assert chosen["dtype"] in ("32", "bf16")
    assert chosen["layout"] in ("contiguous", "channels_last")
    run = fs.train(recipe(steps=4), tmp_path, resume=True, precision="auto", **options)
    assert run.recipe["run"]["precision"] == chosen == run.summary["precision"]


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_precision_trains(tmp_path, precision, layout, monkeypatch):
    from flowstill.engine import training as module
    from flowstill.engine.precision import Precision

    monkeypatch.setattr(module, "choose", lambda *_: Precision(precision, layout))
    run = fs.train(recipe(steps=2), tmp_path, **PLAIN)
    assert all(torch.isfinite(t).all() for t in load_file(run.path / "student.safetensors").values())


def test_few_labels_hide_the_rest_from_the_task(tmp_path):
    """With 20 labelled images the task's batches hold no others; transfer may use every image."""
    seen = {"labelled": set(), "all": set()}
    from flowstill.engine import feed

    class Spy(feed.Feed):
        def __call__(self, step):
            batch = super().__call__(step)
            kind = "labelled" if self._kinds[step % len(self._kinds)] == ("labelled",) else "all"
            seen[kind] |= set(batch.index.tolist())
            if kind == "all":
                assert int((batch.labels >= 0).sum()) < len(batch.labels)
            return batch

    import flowstill.engine.session as session

    patch = pytest.MonkeyPatch()
    patch.setattr(session, "Feed", Spy)
    few = recipe(steps=8)
    fs.train(replace(few, jobs={n: replace(j, labels=20) for n, j in few.jobs.items()}), tmp_path, **PLAIN)
    patch.undo()
    assert len(seen["labelled"]) == 20
    assert len(seen["all"]) > 200


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """BatchNorm normalises by each process's own half, so a network without it is compared."""
    source = tmp_path / "net.py"
    source.write_text(
        "from torch import nn\n"
        "def make(num_classes, in_channels):\n"
        "    conv = lambda i, o, s: nn.Sequential(nn.Conv2d(i, o, 3, s, 1), nn.ReLU())\n"
        "    return nn.Sequential(conv(in_channels, 8, 1), conv(8, 8, 1), conv(8, 16, 2), conv(16, 16, 1),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))\n"
    )
    net = Net(f"{source}:make")
    for name, stages in {
        "two-stage": two_stage("fsp", transfer_steps=4, transfer_lr=0.01, task_steps=4, task_lr=0.05),
        "clip": joint("fsp", steps=4, lr=0.05, rule=AdaptiveClip()),
    }.items():
        given = Recipe(
            "test", DATA, {"teacher": Job(net, alone(4, 0.05), seed=1), "student": Job(net, stages, teacher="teacher")}
        )
        parts = replace(given, data=replace(DATA, accumulate=3))
        runs = [fs.train(given, tmp_path / f"{name}{n}", devices=n, **PLAIN) for n in (1, 2)]
        runs.append(fs.train(parts, tmp_path / f"{name}-parts", devices=2, **PLAIN))
        for job in ("teacher", "student"):
            one, *others = (load_file(run.path / f"{job}.safetensors") for run in runs)
            for other in others:
                for key in one:
                    torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-5)
        assert runs[0].summary["jobs"]["student"]["accuracy"] == pytest.approx(
            runs[1].summary["jobs"]["student"]["accuracy"], abs=0.5
        )


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_a_gradient_of_another_memory_layout_moves_the_right_weights(name):
    """The fused kernels walk over memory; a reduced or recoded gradient is contiguous, the weights may not be."""
    from flowstill.engine.players import Mover

    weights = torch.arange(4.0 * 3 * 9).view(4, 3, 3, 3)
    plain = torch.nn.Parameter(weights.clone())
    other = torch.nn.Parameter(weights.clone().contiguous(memory_format=torch.channels_last))
    gradient = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    for parameter in (plain, other):
        mover = Mover(Player(optimizer=Optimizer(name=name)), [parameter])
        for _ in range(2):
            mover.step([gradient.clone()], 0.1)
    torch.testing.assert_close(other, plain)


def test_a_job_with_weights_does_not_stop_its_group(finished, tmp_path):
    stages = two_stage("fsp", transfer_steps=2, transfer_lr=0.01, task_steps=2, task_lr=0.05)
    given = recipe(
        student=stages, b=Job(NET, stages, teacher="teacher", weights=str(finished.path / "student.safetensors"))
    )
    run = fs.train(replace(given, together=(("student", "b"),)), tmp_path, **PLAIN)
    assert [run.summary["jobs"][job]["steps"] for job in ("student", "b")] == [4, 0]
    one, other = load_file(run.path / "b.safetensors"), load_file(finished.path / "student.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Optimizer(momentum=0.0, nesterov=True), "nesterov needs"),
        (lambda: Player(lr=-0.1), "at least 0, not -0.1"),
        (lambda: Player(lr=Milestones({0: 0.1, 5: -1})), "at least 0, not -1"),
    ],
)
def test_values_that_would_fail_in_the_middle_are_refused_at_once(change, message):
    with pytest.raises(fs.RecipeError, match=message):
        change()


def test_too_many_labels_are_refused_before_anything_is_made(tmp_path):
    few = recipe()
    few = replace(few, jobs={**few.jobs, "student": replace(few.jobs["student"], labels=99999)})
    with pytest.raises(fs.DataError, match="'labels' is 99999"):
        fs.train(few, tmp_path / "run", **PLAIN)
    assert not (tmp_path / "run").exists()


def test_a_loss_of_every_other_batch_is_logged_at_its_own_mean():
    from flowstill.engine.loop import Meter

    meter = Meter()
    for value in (1.0, 3.0):
        meter.add({"rare": torch.tensor(value), "often": torch.tensor(1.0)})
        meter.add({"often": torch.tensor(2.0)})
    assert meter.means() == {"rare": 2.0, "often": 1.5}
    assert meter.means() == {}


def test_frozen_layers_of_a_network_stay_frozen(tmp_path):
    source = tmp_path / "net.py"
    source.write_text(
        "import flowstill\n"
        "def make(num_classes, in_channels):\n"
        "    net = flowstill.create('resnet8', num_classes, in_channels, width=0.5)\n"
        "    net.layer1.requires_grad_(False)\n"
        "    return net\n"
    )
    given = recipe()
    jobs = {**given.jobs, "student": replace(given.jobs["student"], network=Net(f"{source}:make"))}
    run = fs.train(replace(given, jobs=jobs), tmp_path / "run", **PLAIN)
    with torch.random.fork_rng():
        torch.manual_seed(derive(0, 0, "init"))
        fresh = fs.create(f"{source}:make", num_classes=10, in_channels=1).state_dict()
    trained = load_file(run.path / "student.safetensors")
    assert torch.equal(trained["layer1.0.conv1.weight"], fresh["layer1.0.conv1.weight"])
    assert not torch.equal(trained["layer2.0.conv1.weight"], fresh["layer2.0.conv1.weight"])


def test_a_loss_that_is_lost_is_said_once(tmp_path, caplog):
    run = fs.train(recipe(student=alone(6, 1e30)), tmp_path, **PLAIN)
    said = [message for message in caplog.messages if "not finite" in message]
    assert len(said) == 1
    assert "job 'student', stage 'task': the loss 'labels' is not finite by update" in said[0]
    assert run.finished
