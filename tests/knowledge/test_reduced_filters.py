"""Knowledge representing into a student of fewer filters, on images that are not square."""

import pytest
import torch
from torch import nn

import flowstill as fs
from flowstill.data.batch import Batch
from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.engine.teacher import needs_of
from flowstill.features.taps import Reading, Tapped
from flowstill.knowledge.aggregation import Aggregated, Aggregation
from flowstill.knowledge.representing import alternating
from support.representing_networks import calibrated, draw, pairing, psi_by_loops, read
from support.stage_runners import StudentByHand

SHAPE = (3, 16, 24)
TEACHER, STUDENT = (16, 32, 64), (11, 21, 43)  # two thirds of the teacher's


def networks():
    torch.manual_seed(0)
    teacher = calibrated(fs.create("resnet14", width=TEACHER), SHAPE).requires_grad_(False)
    return teacher, fs.create("resnet8", width=STUDENT)


def test_psi_equals_the_loops():
    teacher, student = networks()
    pairs, setting = pairing(teacher.double(), student.double(), SHAPE)
    loss = calibrated(Aggregation().build(pairs, setting).double(), None, seed=7)
    matching = Aggregated().build(pairs, setting)
    images = draw(1, *SHAPE)
    reading = read(teacher, loss.teacher_taps, images)
    expected, features = psi_by_loops(teacher, loss, reading)
    assert float(loss.compare(Reading(images), loss.target(reading)).detach()) == pytest.approx(expected, rel=1e-9)
    sizes = {(11, 16, 24), (21, 8, 12), (43, 4, 6)}
    assert {(len(maps), len(maps[0]), len(maps[0][0])) for (maps,) in features} == sizes
    for computed, (by_loops,) in zip(matching.target(reading), features, strict=True):
        torch.testing.assert_close(computed[0], torch.tensor(by_loops, dtype=torch.float64))


def test_identity_mappings_exist_and_move_only_in_step_a():
    teacher, student = networks()
    (stage,) = alternating(steps=8, lr=0.05, match_lr=0.05)
    pairs, setting = pairing(teacher, student, SHAPE)
    runner = StudentByHand(make_fabric("cpu", 1, Precision()), student, stage, pairs, setting)
    aggregate = setting.shared["aggregate"]
    identities = [layer.identity for layer in aggregate.layers]
    assert all(isinstance(identity, nn.Conv2d) for identity in identities)
    assert [tuple(identity.weight.shape) for identity in identities] == [
        (wide, narrow, 1, 1) for narrow, wide in zip(STUDENT, TEACHER, strict=True) for _ in range(2)
    ]

    images = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(1))
    given = Batch(images, torch.arange(6), torch.arange(6), torch.zeros(6, dtype=torch.long))
    with torch.no_grad():
        reading = Tapped(teacher, needs_of(runner.losses([0, 1]))[0])(images)
    frozen, seen = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}, {}
    for step in range(8):
        for number in (0, 1):
            before = [identity.weight.detach().clone() for identity in identities]
            weights = student.layer3[0].conv1.weight.detach().clone()
            for name, loss in runner.update(number, given, reading, step).items():
                seen.setdefault(name, []).append(float(loss))
            still = [torch.equal(a, b.weight) for a, b in zip(before, identities, strict=True)]
            assert still == [number == 1] * 6
            assert not torch.equal(weights, student.layer3[0].conv1.weight)
    assert set(seen) == {"labels", "aggregation", "aggregated"}
    assert all(torch.isfinite(torch.tensor(values)).all() for values in seen.values())
    assert seen["aggregation"][-1] < seen["aggregation"][0]
    assert all(torch.equal(frozen[name], tensor) for name, tensor in teacher.state_dict().items())
    assert not any("identity" in name for name in student.state_dict())
