"""Knowledge representing's two steps in turn: what moves and what stays."""

from dataclasses import replace

import pytest
import torch

import flowstill as fs
from flowstill.data.batch import Batch
from flowstill.data.spec import Augment, Data
from flowstill.knowledge.representing import alternating
from flowstill.nets import save_weights
from flowstill.recipes.recipe import Job, Net, Optimizer, Recipe, Term
from flowstill.transfer.recoding import Recoding
from oracles import clipping
from support.compared_runs import PLAIN, assert_same, resumed, weights
from support.representing_networks import read, vgg
from support.stage_runners import kept, moved, read_teacher, stage_runner


def batch(shape=(3, 16, 16), seed=0, count=16):
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    return Batch(images, torch.arange(count) % 10, torch.arange(count), torch.zeros(count, dtype=torch.long))


def start(stage, teacher=None, student=None, shape=(3, 16, 16)):
    torch.manual_seed(0)
    teacher = (teacher or fs.create("resnet14", width=0.25)).requires_grad_(False).eval()
    student = student or fs.create("resnet8", width=(3, 8, 12))
    return stage_runner(stage, teacher, student, shape), teacher, student


def step(runner, teacher, number, given, t=0):
    return runner.update(number, given, read_teacher(runner, teacher, given.images, [0, 1]), t)


def test_step_a_moves_student_and_w_and_step_b_only_the_student():
    (stage,) = alternating(steps=4, lr=0.05, match_lr=0.05)
    runner, teacher, student = start(stage)
    aggregate = runner.module.losses[1].aggregate
    teacher_before, student_before, w = kept(teacher), kept(student), kept(aggregate)
    losses = step(runner, teacher, 0, batch())
    assert set(losses) == {"labels", "aggregation"}
    assert moved(teacher_before, teacher) == set()
    assert moved(student_before, student) >= {"conv1.weight", "layer3.0.conv2.weight", "fc.weight", "bn1.running_mean"}
    assert moved(w, aggregate) >= {
        "layers.0.conv.weight",
        "layers.0.bn.running_mean",
        "layers.0.identity.weight",
        "layers.5.bn.bias",
    }
    student_before, w = kept(student), kept(aggregate)
    losses = step(runner, teacher, 1, batch())
    assert set(losses) == {"aggregated"}
    assert moved(teacher_before, teacher) == set()
    assert moved(w, aggregate) == set()
    after = moved(student_before, student)
    assert "conv1.weight" in after
    assert not any(name.startswith("fc") or "running" in name or "tracked" in name for name in after)


def test_step_b_follows_w_as_step_a_left_it():
    """The target is W~'s features after A's step, normalised by the batch, and the loss is of a fresh forward."""
    (stage,) = alternating(steps=4, lr=0.05, match_lr=0.0)
    runner, teacher, student = start(stage)
    given = batch()
    step(runner, teacher, 0, given)
    (value,) = step(runner, teacher, 1, given).values()
    matching = runner.module.losses[2]
    taps = [group.teacher.before.tap for group in matching._aggregate[0].groups]
    inputs = read(teacher, taps, given.images)
    twin = fs.create("resnet8", width=(3, 8, 12)).train()
    twin.load_state_dict(student.state_dict())
    student_before = read(twin, matching.student_taps, given.images)
    expected = 0.0
    for group, layer in zip(matching._aggregate[0].groups, matching._aggregate[0].layers, strict=True):
        maps = layer.conv(inputs[group.teacher.before.tap])
        mean, variance = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), keepdim=True, correction=0)
        maps = (
            (maps - mean) / (variance + 1e-5).sqrt() * layer.bn.weight.view(-1, 1, 1) + layer.bn.bias.view(-1, 1, 1)
        ).relu()
        expected += float((maps - student_before[group.student.after.tap]).square().mean().detach())
    assert float(value) == pytest.approx(expected, rel=1e-4)


def test_a_gamma_of_zero_leaves_w_unchanged():
    for gamma, expected in ((0.0, set()), (1.0, None)):
        (stage,) = alternating(steps=4, lr=0.05, match_lr=0.05, gamma=gamma, optimizer=Optimizer(weight_decay=0.0))
        runner, teacher, _ = start(stage)
        aggregate = runner.module.losses[1].aggregate
        before = {name: p.detach().clone() for name, p in aggregate.named_parameters()}
        step(runner, teacher, 0, batch())
        changed = {name for name, p in aggregate.named_parameters() if not torch.equal(before[name], p)}
        assert changed == (set(before) if expected is None else expected)


def test_gamma_and_w_do_not_reach_the_student_in_step_a():
    """Eq. 9's second term involves only the teacher and W~."""
    students = []
    for gamma in (0.0, 3.0):
        (stage,) = alternating(steps=4, lr=0.05, match_lr=0.05, gamma=gamma)
        runner, teacher, student = start(stage)
        step(runner, teacher, 0, batch())
        students.append(kept(student))
    assert all(torch.equal(students[0][name], students[1][name]) for name in students[0])


def test_without_w_or_recoding_the_student_differs():
    ways = {}
    for name, options in {
        "kr": {},
        "dense": {"recode": None},
        "soft": {"recode": Recoding("recode_soft")},
        "penalty": {"recode": Recoding("double_backward", 1e-4)},
    }.items():
        (stage,) = alternating(steps=4, lr=0.05, match_lr=0.05, **options)
        runner, teacher, student = start(stage)
        step(runner, teacher, 0, batch())
        ways["without W~"] = kept(student)
        step(runner, teacher, 1, batch())
        ways[name] = kept(student)
    weights = [way["layer2.0.conv1.weight"] for way in ways.values()]
    assert all(torch.isfinite(w).all() for w in weights)
    assert not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def test_step_b_passes_only_what_lies_above_the_threshold():
    (stage,) = alternating(steps=4, lr=0.05, match_lr=0.05, optimizer=Optimizer(momentum=0.0, weight_decay=0.0))
    runner, teacher, student = start(stage)
    student_before = kept(student)
    step(runner, teacher, 1, batch())
    weight = "layer3.0.conv1.weight"
    still = float((student.state_dict()[weight] == student_before[weight]).float().mean())
    assert 0.3 < still < 0.91


@pytest.mark.parametrize(
    ("teacher", "student", "side"),
    [
        (lambda: fs.create("resnet20", width=0.5), lambda: fs.create("resnet8", width=0.5), 16),
        (lambda: vgg((2, 8), (4, 16)), lambda: vgg((2, 6), (2, 12)), 16),
        (
            lambda: fs.create("timm:mobilenetv2_035", num_classes=10),
            lambda: vgg((2, 8), (2, 8), (2, 8), (2, 8), (2, 8)),
            32,
        ),
    ],
)
def test_each_loss_falls_on_a_fixed_batch_for_any_sectioned_network(teacher, student, side):
    torch.manual_seed(1)
    teacher, student, given = teacher().train(), student(), batch((3, side, side), count=8)
    with torch.no_grad():
        for _ in range(20):
            teacher(given.images)  # BatchNorm's statistics are of a network that has seen images
    (stage,) = alternating(steps=30, lr=0.05, match_lr=0.02, gamma=1.0, recode=None)
    runner, teacher, _ = start(stage, teacher, student, (3, side, side))
    for number, name in enumerate(["aggregation", "aggregated"]):
        values = [float(step(runner, teacher, number, given, t)[name]) for t in range(8)]
        assert all(torch.isfinite(torch.tensor(values)))
        assert values[-1] < 0.9 * values[0]


def test_the_match_falls_while_w_is_fixed():
    (stage,) = alternating(steps=30, lr=0.05, match_lr=0.1, recode=Recoding())
    runner, teacher, _ = start(stage)
    values = [float(step(runner, teacher, 1, batch(), t)["aggregated"]) for t in range(25)]
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("twice", [False, True])
def test_a_batch_decays_the_students_weights_once_or_twice(twice):
    """Where no gradient reaches them (no momentum, losses that count nothing) the weights shrink as the loops say."""
    lr, match_lr, decay = 0.05, 0.02, 0.1
    (stage,) = alternating(
        steps=4,
        lr=lr,
        match_lr=match_lr,
        task=Term("labels", 0.0),
        matching=Term("aggregated", 0.0),
        optimizer=Optimizer(momentum=0.0, weight_decay=decay),
        decay_twice=twice,
    )
    runner, teacher, student = start(stage)
    before = kept(student)
    for _ in range(2):
        for number in (0, 1):
            step(runner, teacher, number, batch())
    for name, parameter in student.named_parameters():
        weights = before[name].flatten().tolist()
        for _ in range(2):
            for rate in (lr, match_lr) if twice and not name.startswith("fc") else (lr,):  # no loss of B has the head
                weights, _m = clipping.sgd(weights, [0.0] * len(weights), [0.0] * len(weights), rate, 0.0, False, decay)
        assert parameter.detach().flatten().tolist() == pytest.approx(weights, rel=1e-5), name


def test_a_batch_decays_weights_as_in_training_alone():
    """Whatever the optimiser: step B's has no term of the weights, L2 or L1, and is step A's otherwise."""
    for optimizer in (Optimizer(weight_decay=0.1, l1=0.2, nesterov=True), Optimizer("adamw", weight_decay=0.1)):
        (stage,) = alternating(steps=4, lr=0.1, match_lr=0.1, optimizer=optimizer)
        assert stage.players["aggregate"].optimizer == optimizer
        assert stage.players["student"].optimizer == replace(optimizer, weight_decay=0.0, l1=0.0)


def test_posterior_knowledge_joins_step_a():
    (stage,) = alternating(steps=4, lr=0.05, match_lr=0.05, posterior=("soft_logits", "nst"))
    runner, teacher, _ = start(stage)
    assert set(step(runner, teacher, 0, batch())) == {"labels", "soft_logits", "nst", "aggregation"}


def test_the_stage_is_the_papers():
    (stage,) = alternating(steps=64_000, lr=0.1, match_lr=0.01)
    (cycle,) = stage.cycle
    assert [update.player for update in cycle] == ["aggregate", "student"]
    assert [update.update_batchnorm for update in cycle] == [True, False]
    assert stage.players["aggregate"].modules == ("student", "adapters", "aggregate")
    assert stage.players["aggregate"].optimizer == Optimizer("sgd", 0.9, weight_decay=1e-5)
    assert stage.players["student"].optimizer == Optimizer("sgd", 0.9, weight_decay=0.0)
    assert stage.players["aggregate"].recode is None
    assert stage.players["student"].recode == Recoding()


def recipe(teacher):
    stages = alternating(steps=6, lr=0.05, match_lr=0.01, recode=Recoding(lr=0.3))
    student = Net("resnet8", {"width": [5, 10, 20]})
    return Recipe(
        "kr",
        Data("digits", batch=32, augment=Augment(shift=1)),
        {
            "teacher": Job(Net("resnet14", {"width": 0.5}), weights=str(teacher)),
            "student": Job(student, stages, teacher="teacher"),
        },
    )


def test_a_run_resumes_bit_for_bit(tmp_path):
    """W~, both momenta, thresholds and statistics are in the saved state; the run works from a recipe with filters reduced."""
    torch.manual_seed(0)
    save_weights(fs.create("resnet14", num_classes=10, in_channels=1, width=0.5), tmp_path / "teacher.safetensors")
    given = recipe(tmp_path / "teacher.safetensors")
    whole = fs.train(given, tmp_path / "whole", **PLAIN)
    assert_same(resumed(given, tmp_path / "part", ("student", "represent", 3)), whole)
    reduced = fs.create("resnet8", num_classes=10, in_channels=1, width=(5, 10, 20))
    assert set(weights(whole)) == set(reduced.state_dict())
