"""The contract of every knowledge with every procedure and network: all combinations, a few real steps each."""

import copy
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torch import nn

import flowstill as fs
from flowstill.data.batch import Batch
from flowstill.engine.folding import FoldedNetwork
from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.engine.seeds import RandomSequences
from flowstill.engine.step import Step
from flowstill.engine.student import StudentWithLosses
from flowstill.engine.teacher import Teacher
from flowstill.errors import RecipeError
from flowstill.features.pairs import pair_sections
from flowstill.features.taps import Tapped
from flowstill.knowledge.kdgan import with_adversaries
from flowstill.knowledge.representing import alternating
from flowstill.transfer.knowledge import KNOWLEDGE, Setting
from flowstill.transfer.procedures import joint, stage
from flowstill.transfer.rules import AdaptiveClip
from flowstill.transfer.stages import Optimizer, Stage, Term, Update
from oracles import baselines, dense, fsp, hints, svd
from support.stage_runners import StudentByHand

CLASSES = 5
SHAPES = {"resnet": (3, 16, 16), "vgg": (3, 16, 16), "timm": (3, 40, 40)}  # so large that no last map is a single pixel
PLAIN = Optimizer(weight_decay=0.0)
# Learning rates at which each loss of these small networks falls at once.
RATES = {"fsp": 0.01, "dense": 0.01, "svd": 0.01, "hints": 0.01}
PLAYED = ["kdgan", "aggregation"]  # several losses that act on each other
BESIDE = {"labels": "the task", "aggregated": "comes with aggregation"}
COMPARED = sorted({*KNOWLEDGE} - {*PLAYED, *BESIDE})  # one loss of teacher and student: every other knowledge there is


def vgg(*convolutions):
    """Blocks of convolutions with pooling behind each, as VGG has them, without BatchNorm."""
    layers, channels = [], 3
    for width, count in zip((8, 16, 16), convolutions, strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 4, CLASSES))


PAIRS = {
    "resnet": lambda: [fs.create(name, CLASSES, width=0.5) for name in ("resnet14", "resnet8")],
    "vgg": lambda: [vgg(2, 2, 3), vgg(1, 1, 1)],
    "timm": lambda: [timm.create_model("test_resnet", num_classes=CLASSES) for _ in range(2)],
}


def networks(family):
    """A teacher, frozen, and a student with other weights."""
    torch.manual_seed(11)
    teacher, student = PAIRS[family]()
    return teacher.requires_grad_(False).eval(), student


def batch(family, count=8, dtype=torch.float32):
    images = torch.randn(count, *SHAPES[family], generator=torch.Generator().manual_seed(2)).to(dtype)
    return Batch(
        images,
        torch.arange(count) % CLASSES,
        torch.arange(count),
        torch.zeros(count, dtype=torch.long),
        view=torch.zeros(count, dtype=torch.long),
    )


def stages(name, procedure, steps):
    """The stage in which the knowledge acts, for each way of transfer."""
    lr = RATES.get(name, 0.05)
    if name == "aggregation":
        (made,) = alternating(steps=steps, lr=lr, match_lr=lr, gamma=0.01, optimizer=PLAIN)
        if procedure == "two_stage":  # the same without the task
            first, second = made.cycle[0]
            made = replace(made, cycle=((replace(first, task=()), second),))
        return made
    if procedure == "two_stage":
        made = stage("transfer", steps, lr, [Update(transfer=(name,))], PLAIN)
    else:
        rule = {"rule": AdaptiveClip(epoch_steps=1)} if procedure == "clipped" else {}
        made = joint(name, steps=steps, lr=lr, optimizer=PLAIN, **rule)[0]
    return with_adversaries(made) if name == "kdgan" else made


def run(made: Stage, teacher, student, given, dtype="32"):
    """The stage on one batch, again and again. Returns each step's losses."""
    shape = tuple(given.images.shape[1:])
    torch.manual_seed(5)
    fabric = make_fabric("cpu", 1, Precision(dtype))
    pairs = pair_sections(teacher, student, shape)
    runner = StudentByHand(fabric, student, made, pairs, Setting(teacher, student, shape, CLASSES))
    reader, feed = Teacher(fabric, teacher), lambda number: replace(given, step=number, steps=made.steps)
    step = Step(fabric, {"student": runner}, reader, feed, RandomSequences(fabric))
    losses = []
    for _ in range(made.steps):
        step()
        losses.append(step.means["student"].take())
    runner.close()
    return losses


def test_the_special_cases_are_registered_knowledge():
    assert {*PLAYED, *BESIDE} < {*KNOWLEDGE}
    assert {*NAIVE} <= {*COMPARED}


# Aggregation's losses are in updates of their own, so there is nothing to clip.
CROSSED = [
    case
    for case in itertools.product([*COMPARED, *PLAYED], ["two_stage", "joint", "clipped"])
    if case != ("aggregation", "clipped")
]


@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.parametrize(("name", "procedure"), CROSSED)
def test_losses_are_finite_and_fall_on_a_fixed_batch(name, family, procedure):
    teacher, student = networks(family)
    before = copy.deepcopy(teacher.state_dict())
    losses = run(stages(name, procedure, 12), teacher, student, batch(family))
    assert all(math.isfinite(value) for row in losses for value in row.values())
    mine = [key for key in losses[0] if key != "labels" and not (name == "kdgan" and key in ("kdgan", "kdgan.1"))]
    assert mine  # of the game, the student's own loss; the others' need not fall, since each makes the other's worse
    total = [sum(row[key] for key in ({*mine, "labels"} & row.keys())) for row in losses]
    assert min(total[-3:]) < total[0]
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.parametrize("name", COMPARED)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name, family):
    teacher, _ = networks(family)
    teacher = teacher.double()
    student = copy.deepcopy(teacher).requires_grad_(True)
    pairs = pair_sections(teacher, student, SHAPES[family])
    loss = KNOWLEDGE.find(name)().build(pairs, Setting(teacher, student, SHAPES[family], CLASSES)).double()
    given = batch(family, 3, torch.float64)
    target = loss.target(Tapped(teacher, loss.teacher_taps)(given.images), given)
    value = loss.compare(Tapped(student, loss.student_taps)(given.images), target)
    assert abs(value.item()) < 1e-12
    gradients = torch.autograd.grad(value, list(student.parameters()), allow_unused=True)
    assert all(g is None or g.abs().max() < 1e-6 for g in gradients)


@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.parametrize("name", [*COMPARED, *PLAYED])
def test_no_gradient_reaches_the_teacher(name, family):
    """Even of a teacher that is not frozen, read with a graph."""
    teacher, student = networks(family)
    teacher.requires_grad_(True)
    pairs = pair_sections(teacher, student, SHAPES[family])
    loss = KNOWLEDGE.find(name)().build(pairs, Setting(teacher, student, SHAPES[family], CLASSES))
    given = batch(family, 4)
    target = loss.target(Tapped(teacher, loss.teacher_taps)(given.images), given)
    value = loss.compare(Tapped(student.train(), loss.student_taps)(given.images), target)
    value.backward()
    assert value.requires_grad
    assert all(parameter.grad is None for parameter in teacher.parameters())


def dense_by_loops(teacher, student):
    spans = dense.spans(len(teacher) - 1)
    return dense.loss(teacher, student, spans, dense.alphas("equal", [len(maps[0]) for maps in teacher], spans))


def fsp_by_loops(teacher, student):
    """Of the maps at each section's own entry and exit, one after the other."""
    ours, theirs = ([fsp.fsp_matrix(*side[i : i + 2]) for i in range(0, len(side), 2)] for side in (student, teacher))
    return fsp.fsp_loss(theirs, ours, fsp.alphas("equal", [(len(g), len(g[0])) for g in (m[0] for m in theirs)]))


def svd_by_loops(teacher, student):
    """Of the maps at each section's own entry and exit, one after the other."""
    arrays = [[np.array(maps) for maps in side] for side in (teacher, student)]
    return svd.transfer_loss(*arrays, [(i, i + 1) for i in range(0, len(teacher), 2)], 1)


NAIVE = {  # of the maps where sections begin and end, as nested lists
    "fsp": fsp_by_loops,
    "dense": dense_by_loops,
    "svd": svd_by_loops,
    "nst": lambda teacher, student: 50 / 2 * baselines.nst(student[-1], teacher[-1]),
    "attention": lambda teacher, student: 1000 / 2 * sum(map(baselines.attention, student[1:], teacher[1:])),
    "soft_logits": lambda teacher, student: baselines.soft_logits(student, teacher, 4.0, "kl", True),
    "hints": lambda teacher, student: hints.hint(student, teacher),
}


@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.parametrize("name", NAIVE)
def test_under_bfloat16_losses_are_float32_and_near_the_loops(name, family):
    """What the forward rounded is rounded; the loss itself must not round any more."""
    teacher, student = networks(family)
    pairs = pair_sections(teacher, student, SHAPES[family])
    loss = KNOWLEDGE.find(name)().build(pairs, Setting(teacher, student, SHAPES[family], CLASSES))
    given = batch(family, 2)
    sides = [[getattr(pair, side) for pair in pairs] for side in ("teacher", "student")]
    ends = [[sections[0].entry, *(section.exit for section in sections)] for sections in sides]
    if name in ("fsp", "svd"):  # after a pooling a section's entry is not the exit before it
        ends = [[tap for section in sections for tap in (section.entry, section.exit)] for sections in sides]
    with torch.autocast("cpu", torch.bfloat16):
        theirs = Tapped(teacher, [*loss.teacher_taps, *ends[0]])(given.images)
        ours = Tapped(student.train(), [*loss.student_taps, *ends[1]])(given.images)
        value = loss.compare(ours, loss.target(theirs, given))
    assert value.dtype == torch.float32
    plain = lambda maps: maps.detach().double().tolist()  # noqa: E731
    if name == "soft_logits":
        expected = NAIVE[name](plain(theirs.logits), plain(ours.logits))
    elif name == "hints":
        expected = NAIVE[name](plain(theirs[loss.teacher_taps[0]]), plain(ours[loss.student_taps[0]]))
    else:
        expected = NAIVE[name]([plain(theirs[tap]) for tap in ends[0]], [plain(ours[tap]) for tap in ends[1]])
    assert expected > 0
    assert value.item() == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("name", [*COMPARED, *PLAYED])
def test_in_the_engine_bfloat16_rounds_only_the_forward(name, monkeypatch):
    """What a loss is held against reaches it as it was made: no rounding on the way into the wrapped module."""
    teacher, student = networks("resnet")
    twin, given, seen = copy.deepcopy(student), batch("resnet"), {}
    made = stages(name, "joint", 1)
    plain = StudentWithLosses.forward

    def spy(self, images, update, targets):
        for built, target in zip(self.terms[update], targets, strict=True):
            seen[update, built.name] = [
                part
                for part in ([target] if isinstance(target, torch.Tensor) else target)
                if isinstance(part, torch.Tensor) and part.is_floating_point()
            ]
        return plain(self, images, update, targets)

    monkeypatch.setattr(StudentWithLosses, "forward", spy)
    losses = run(made, teacher, student, given, dtype="bf16")
    assert all(math.isfinite(value) for row in losses for value in row.values())
    if name in ("fsp", "dense", "svd"):  # others hold what the forward itself gave
        parts = [part for (_, term), parts in seen.items() if term == name for part in parts]
        assert parts
        assert all(part.dtype == torch.float32 for part in parts)
        assert any(not torch.equal(part, part.bfloat16().float()) for part in parts)
    if name in COMPARED and name != "hints":
        pairs = pair_sections(teacher, twin, SHAPES["resnet"])
        loss = KNOWLEDGE.find(name)().build(pairs, Setting(teacher, twin, SHAPES["resnet"], CLASSES))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            # As the engine reads it: with BatchNorm folded, which rounds elsewhere.
            reader = FoldedNetwork(teacher).reader(loss.teacher_taps, SHAPES["resnet"])
            target = loss.target(Tapped(reader, loss.teacher_taps)(given.images), given)
            expected = loss.compare(Tapped(twin.train(), loss.student_taps)(given.images), target)
        assert losses[0][name] == pytest.approx(expected.item(), rel=1e-5)


def test_several_weighted_terms_in_one_stage():
    teacher, student = networks("resnet")
    transfer = (Term("dense", 2.0), Term("soft_logits", {"linear": [4, 1]}), Term("attention", 0.5))
    (made,) = joint(transfer, steps=8, lr=0.02, rule=AdaptiveClip(), optimizer=PLAIN)
    losses = run(made, teacher, student, batch("resnet"))
    assert set(losses[0]) == {"labels", "dense", "soft_logits", "attention"}
    assert losses[-1]["labels"] < losses[0]["labels"]


def test_knowledge_representing_combines_with_neuron_selectivity():
    """KR + NST: the loss on predictions in step A."""
    teacher, student = networks("resnet")
    (made,) = alternating(steps=4, lr=0.02, match_lr=0.02, posterior="nst")
    losses = run(made, teacher, student, batch("resnet"))
    assert set(losses[0]) == {"labels", "nst", "aggregation", "aggregated"}


def test_aggregation_and_task_in_one_update_are_refused():
    """They need two updates, and the error says so."""
    teacher, student = networks("resnet")
    with pytest.raises(RecipeError, match="aggregated needs the layers that 'aggregation' trains"):
        run(joint("aggregated", steps=2, lr=0.1)[0], teacher, student, batch("resnet"))
