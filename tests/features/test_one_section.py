"""One section by its own knowledge alone: it learns, and nothing above it moves (Yim et al. 2017, section 4.1.1)."""

import pytest
import torch

import flowstill as fs
from flowstill.data.batch import Batch
from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.engine.teacher import needs_of
from flowstill.features.taps import Tapped
from flowstill.knowledge.hints import Hints
from flowstill.transfer.knowledge import Setting
from flowstill.transfer.procedures import cyclic
from flowstill.transfer.stages import Optimizer
from support.representing_networks import calibrated
from support.stage_runners import StudentByHand

SHAPE = (3, 16, 16)
PARTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "fc")


def part_of(name):
    return name.split(".")[0]


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(
    ("kind", "lr"),
    [(lambda number: fs.FSP(sections=(number,)), 0.02), (lambda number: Hints(layers=(number,), sum=False), 0.1)],
    ids=["fsp", "hints"],
)
def test_training_one_section_leaves_everything_above_it_unchanged(kind, lr, number):
    """Later sections and the head stay to the bit, BatchNorm's statistics included, through decay and momentum."""
    torch.manual_seed(0)
    teacher = calibrated(fs.create("resnet14", width=0.25), SHAPE).requires_grad_(False)
    student = fs.create("resnet8", width=0.25)
    (stage,) = cyclic([kind(number)], steps=12, lr=lr, optimizer=Optimizer(momentum=0.9, weight_decay=0.05))
    pairs, setting = fs.pair_sections(teacher, student, SHAPE), Setting(teacher, student, SHAPE, 10)
    runner = StudentByHand(make_fabric("cpu", 1, Precision()), student, stage, pairs, setting)
    images = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    given = Batch(images, torch.arange(8), torch.arange(8), torch.zeros(8, dtype=torch.long))
    with torch.no_grad():
        reading = Tapped(teacher, needs_of(runner.losses([0]))[0])(images)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    frozen = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    values = [float(loss) for t in range(12) for loss in runner.update(0, given, reading, t).values()]
    assert values[-1] < 0.8 * values[0]
    moved = {name for name, tensor in student.state_dict().items() if not torch.equal(before[name], tensor)}
    below = PARTS[: 3 + number]
    assert moved == {name for name in before if part_of(name) in below}
    assert all(torch.equal(frozen[name], tensor) for name, tensor in teacher.state_dict().items())
