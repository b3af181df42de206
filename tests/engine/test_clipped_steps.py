"""Joint training as the engine runs it, against steps written by hand: spec (d), rule, decay, momentum and Nesterov."""

import pytest
import torch
from torch.nn import functional as F

import flowstill as fs
from flowstill.data.batch import Batch
from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.features.taps import Tapped
from flowstill.recipes.recipe import AdaptiveClip, Optimizer
from flowstill.transfer.knowledge import Setting
from flowstill.transfer.procedures import joint
from flowstill.transfer.stages import Term
from oracles import clipping as oracle
from support.stage_runners import StudentByHand

SHAPE = (1, 8, 8)
LR, MOMENTUM, DECAY, STEPS = 0.05, 0.9, 0.1, 5


def resnet():
    return fs.create("resnet8", num_classes=10, in_channels=1, width=0.25)


def batch(step):
    images = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(step))
    return Batch(images, (torch.arange(8) + step) % 10, torch.arange(8), torch.zeros(8, dtype=torch.long), step, STEPS)


def as_lists(tensors):
    return [None if tensor is None else tensor.flatten().tolist() for tensor in tensors]


def separately(weights, loss, reading, given, weight):
    """The gradients of the task and of the weighted transfer: two networks, two forwards, two backwards."""
    found = []
    for part in ("task", "transfer"):
        network = resnet().train()
        with torch.no_grad():
            for parameter, values in zip(network.parameters(), weights, strict=True):
                parameter.copy_(torch.tensor(values).view_as(parameter))
        seen = Tapped(network, loss.student_taps)(given.images)
        value = (
            F.cross_entropy(seen.logits, given.labels)
            if part == "task"
            else weight * loss.compare(seen, loss.target(reading))
        )
        found.append(as_lists(torch.autograd.grad(value, list(network.parameters()), allow_unused=True)))
    return found


def trained(mode, optimizer, epoch_steps, weight):
    """The student as the engine's updates leave it, and as steps by hand do; and what the transfer was multiplied by."""
    torch.manual_seed(0)
    teacher, student = resnet().eval(), resnet()
    names = [name for name, _ in student.named_parameters()]
    pairs = fs.pair_sections(teacher, student, (2, *SHAPE))
    loss = fs.FSP().build(pairs)
    rule = AdaptiveClip(mode=mode, epoch_steps=epoch_steps)
    (stage,) = joint(Term(fs.FSP(), weight), steps=STEPS, lr=LR, rule=rule, optimizer=optimizer)
    setting = Setting(teacher, student, SHAPE, 10)
    runner = StudentByHand(make_fabric("cpu", 1, Precision()), student, stage, pairs, setting)

    decays = [optimizer.decay == "all" or not ("bn" in name or name.endswith("bias")) for name in names]
    weights = as_lists(parameter.detach() for parameter in student.parameters())
    momenta = [[0.0] * len(values) for values in weights]
    seen = []
    for step in range(STEPS):
        given = batch(step)
        with torch.no_grad():
            reading = Tapped(teacher, loss.teacher_taps)(given.images)
        runner.update(0, given, reading, step)
        task, transfer = separately(weights, loss, reading, given, weight)
        regularised = oracle.with_l2(task, weights, decays, optimizer.weight_decay)
        factors = oracle.factors(mode, task, transfer, step // epoch_steps, regularised)
        seen.append([factor for factor, reached in zip(factors, transfer, strict=True) if reached is not None])
        for i, gradient in enumerate(oracle.met(mode, task, transfer, step // epoch_steps, regularised)):
            decay = optimizer.weight_decay if decays[i] else 0.0
            weights[i], momenta[i] = oracle.sgd(
                weights[i], gradient, momenta[i], LR, optimizer.momentum, optimizer.nesterov, decay
            )
    return student, dict(zip(names, weights, strict=True)), seen


@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer(momentum=0.0, weight_decay=DECAY),
        Optimizer(momentum=MOMENTUM, weight_decay=DECAY),
        Optimizer(momentum=MOMENTUM, weight_decay=DECAY, decay="weights"),
        Optimizer(momentum=MOMENTUM, weight_decay=DECAY, decay="weights", nesterov=True),
    ],
    ids=["plain", "momentum", "momentum-weights", "nesterov-weights"],
)
@pytest.mark.parametrize(
    ("mode", "weight"), [("official", 0.3), ("ce_norm", 0.3), ("global", 1.0), ("eq14_literal", 0.1)]
)
def test_joint_update_equals_two_separate_backwards(mode, weight, optimizer):
    """Five steps while p of the sigmoid goes 0, 0, 1, 1, 2; the transfer is sometimes cut, and not by one factor."""
    student, expected, factors = trained(mode, optimizer, epoch_steps=2, weight=weight)
    for name, parameter in student.named_parameters():
        by_hand = torch.tensor(expected[name]).view_as(parameter)
        torch.testing.assert_close(parameter.detach(), by_hand, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
    cut = [min(row) for row in factors]
    assert all(0 < factor < 1 for factor in cut)
    assert len(set(cut)) == STEPS
    if mode in ("official", "ce_norm"):
        assert max(factors[-1]) == 1.0
