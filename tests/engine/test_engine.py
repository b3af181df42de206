"""The loop: what moves, what stays, and what is logged."""

from dataclasses import replace

import pytest
import torch

import flowstill as fs
from flowstill.engine import preparing
from flowstill.engine import stage as engine_stage
from flowstill.engine.feed import Feed
from flowstill.engine.player import ActivePlayer
from flowstill.engine.precision import Precision
from flowstill.engine.seeds import derive
from flowstill.engine.step import RunningMeans
from flowstill.nets import save_weights
from flowstill.recipes.recipe import Net, Optimizer, Player, Stage, Update, Weights
from flowstill.transfer.procedures import alone, cyclic, two_stage
from support.compared_runs import PLAIN, weights
from support.engine_recipes import fresh_student, recipe


def test_stage_one_leaves_the_classifier_alone_and_trains_the_rest(tmp_path):
    transfer = two_stage(
        "fsp", transfer_steps=3, transfer_lr=0.01, task_steps=1, task_lr=0.0, optimizer=Optimizer(weight_decay=0.1)
    )
    run = fs.train(recipe(student=transfer), tmp_path, **PLAIN)
    fresh = fresh_student()
    trained = weights(run)
    # Neither gradient nor decay reaches the head in stage 1, and stage 2 has a learning rate of zero.
    assert torch.equal(trained["fc.weight"], fresh["fc.weight"])
    assert not torch.equal(trained["conv1.weight"], fresh["conv1.weight"])
    assert int(trained["bn1.num_batches_tracked"]) == 4  # train mode in both stages


def test_the_optimiser_is_fresh_in_every_stage(tmp_path):
    """Momentum that outlived stage 1 would move the head's neighbours in a stage of zero learning rate's first step."""
    both = recipe(student=two_stage("fsp", transfer_steps=3, transfer_lr=0.01, task_steps=1, task_lr=0.05))
    once = weights(fs.train(both, tmp_path / "a", **PLAIN))
    first_only = recipe(student=two_stage("fsp", transfer_steps=3, transfer_lr=0.01, task_steps=1, task_lr=0.0))
    after_first = weights(fs.train(first_only, tmp_path / "b", **PLAIN))
    network = fs.create("resnet8", num_classes=10, in_channels=1, width=0.5)
    network.load_state_dict(after_first)
    # The second stage alone, from the weights that the first left, must give the same: nothing else is carried over.
    path = tmp_path / "first.safetensors"
    save_weights(network, path)
    alone_then = recipe(student=alone(1, 0.05))
    student = replace(alone_then.jobs["student"], start=Weights(str(path)))
    jobs = {**alone_then.jobs, "student": student}
    again = weights(fs.train(replace(alone_then, jobs=jobs), tmp_path / "c", **PLAIN))
    assert all(torch.equal(again[name], once[name]) for name in once if "running" not in name and "tracked" not in name)


def test_a_cycle_runs_its_updates_in_turn(tmp_path):
    """Two transfers in turn, each with one section: after one step only the first has acted."""
    first, second = fs.FSP(sections=(0,)), fs.FSP(sections=(2,))
    runs = {
        steps: fs.train(recipe(student=cyclic([first, second], steps=steps, lr=0.01)), tmp_path / str(steps), **PLAIN)
        for steps in (1, 2)
    }
    one, two = (weights(runs[steps]) for steps in (1, 2))
    start = fresh_student()
    moved = lambda a, b: {name.split(".")[0] for name in a if not torch.equal(a[name], b[name])}  # noqa: E731
    assert moved(one, start) == {"conv1", "bn1", "layer1"}
    assert moved(two, one) == {"conv1", "bn1", "layer1", "layer2", "layer3"}
    assert moved(two, start) == moved(two, one)


def test_update_without_batchnorm_leaves_its_statistics(tmp_path):
    stage = Stage("task", 2, {"student": Player(lr=0.05)}, ((Update(task="labels", update_batchnorm=False),),))
    run = fs.train(recipe(student=(stage,)), tmp_path, **PLAIN)
    state = weights(run)
    assert int(state["bn1.num_batches_tracked"]) == 0
    assert torch.equal(state["bn1.running_mean"], torch.zeros_like(state["bn1.running_mean"]))


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_precision_trains(tmp_path, precision, layout, monkeypatch):
    monkeypatch.setattr(preparing, "choose", lambda *_: Precision(precision, layout))
    run = fs.train(recipe(steps=2), tmp_path, **PLAIN)
    assert all(torch.isfinite(t).all() for t in weights(run).values())


def test_few_labels_hide_the_rest_from_the_task(tmp_path, monkeypatch):
    """With 20 labelled images the task's batches hold no others; transfer may use every image."""
    seen = {"labelled": set(), "all": set()}

    class Spy(Feed):
        def __call__(self, step):
            batch = super().__call__(step)
            kind = "labelled" if self._kinds[step % len(self._kinds)] == ("labelled",) else "all"
            seen[kind] |= set(batch.index.tolist())
            if kind == "all":
                assert int((batch.labels >= 0).sum()) < len(batch.labels)
            return batch

    monkeypatch.setattr(engine_stage, "Feed", Spy)
    few = recipe(steps=8)
    fs.train(replace(few, jobs={n: replace(j, labels=20) for n, j in few.jobs.items()}), tmp_path, **PLAIN)
    assert len(seen["labelled"]) == 20
    assert len(seen["all"]) > 200


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_a_gradient_in_another_memory_layout_moves_the_right_weights(name):
    """The fused kernels walk over memory; a reduced or recoded gradient is contiguous, the weights may not be."""
    start = torch.arange(4.0 * 3 * 9).view(4, 3, 3, 3)
    plain = torch.nn.Parameter(start.clone())
    other = torch.nn.Parameter(start.clone().contiguous(memory_format=torch.channels_last))
    gradient = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    for parameter in (plain, other):
        mover = ActivePlayer(Player(optimizer=Optimizer(name=name)), [parameter])
        for _ in range(2):
            mover.step([gradient.clone()], 0.1)
    torch.testing.assert_close(other, plain)


def test_a_loss_on_every_other_batch_is_logged_with_its_own_mean():
    meter = RunningMeans()
    for value in (1.0, 3.0):
        meter.add({"rare": torch.tensor(value), "often": torch.tensor(1.0)})
        meter.add({"often": torch.tensor(2.0)})
    assert meter.take() == {"rare": 2.0, "often": 1.5}
    assert meter.take() == {}


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
    trained = weights(run)
    assert torch.equal(trained["layer1.0.conv1.weight"], fresh["layer1.0.conv1.weight"])
    assert not torch.equal(trained["layer2.0.conv1.weight"], fresh["layer2.0.conv1.weight"])
