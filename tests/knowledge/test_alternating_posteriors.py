"""What joins the prediction's loss in step A of knowledge representing: soft labels, NST, KDGAN;."""

import pytest
import torch
from torch.nn import functional as F

import flowstill as fs
from flowstill.data.batch import Batch
from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.engine.teacher import needs_of
from flowstill.features.pairs import pair_sections
from flowstill.features.taps import Tapped
from flowstill.knowledge.kdgan import KDGAN, gumbel_noise, with_adversaries
from flowstill.knowledge.logits import SoftLogits
from flowstill.knowledge.nst import NST
from flowstill.knowledge.representing import alternating
from flowstill.transfer.knowledge import Setting
from support.stage_runners import StudentByHand

SHAPE = (1, 8, 8)
LR, DECAY, SEED, STEP, STEPS = 0.05, 1e-5, 5, 3, 10
SOFT = SoftLogits(temperature=1.0, divergence="cross_entropy", squared=False)
WAYS = {
    "plain": {},
    "soft labels": {"posterior": SOFT},
    "soft labels alone": {"task": SOFT},
    "nst": {"posterior": NST()},
    "kdgan": {"posterior": KDGAN()},
}


def batch():
    images = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(2))
    return Batch(images, torch.arange(8), torch.arange(8) + 20, torch.zeros(8, dtype=torch.long), STEP, STEPS)


class Course:
    """A stage of knowledge representing on one batch. Step A moves the student before anything that W~ gives reaches it."""

    def __init__(self, **options):
        torch.manual_seed(0)
        make = lambda name, width: fs.create(name, num_classes=10, in_channels=1, width=width)  # noqa: E731
        self.teacher, self.student = make("resnet14", 0.25).requires_grad_(False).eval(), make("resnet8", 0.5)
        (stage,) = alternating(steps=STEPS, lr=LR, match_lr=LR, **options)
        game = isinstance(options.get("posterior"), KDGAN)
        self.stage = with_adversaries(stage) if game else stage
        self.setting = Setting(self.teacher, self.student, SHAPE, 10, seed=SEED)
        pairs = pair_sections(self.teacher, self.student, SHAPE)
        self.runner = StudentByHand(make_fabric("cpu", 1, Precision()), self.student, self.stage, pairs, self.setting)

    def play(self, *players):
        """The updates of these players, in the stage's order; the names of step A's losses."""
        numbers = [number for number, update in enumerate(self.stage.updates) if update.player in players]
        taps, logits = needs_of(self.runner.losses(numbers))
        with torch.no_grad():
            reading = Tapped(self.teacher, taps, until="logits" if logits else "taps")(batch().images)
        for number in numbers:
            losses = self.runner.update(number, batch(), reading, STEP)
            assert all(torch.isfinite(loss) for loss in losses.values())

    @property
    def weights(self):
        return torch.cat([parameter.detach().flatten() for parameter in self.student.parameters()])


def after(*players, **options):
    """The student's weights after these players' updates on one batch."""
    course = Course(**options)
    course.play(*players)
    return course.weights


def assert_all_differ(rows):
    names = list(rows)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert not torch.equal(rows[one], rows[other]), f"{one} gives what {other} gives"


@pytest.mark.parametrize("players", [("aggregate",), ("aggregate", "student")])
def test_each_posterior_changes_the_students_next_weights(players):
    every = ("discriminator", "teacher_copy", *players)
    rows = {name: after(*every, **options) for name, options in WAYS.items()}
    assert torch.equal(rows["plain"], after(*every))  # nothing else is random
    assert_all_differ(rows)


def test_each_part_of_the_game_changes_the_students_next_weights():
    every = ("discriminator", "teacher_copy", "aggregate")
    rows = {
        name: after(*players, posterior=KDGAN(**options))
        for name, players, options in (
            ("the whole game", every, {}),
            ("D stands still", every[1:], {}),
            ("T stands still", ("discriminator", "aggregate"), {}),
            ("both stand still", ("aggregate",), {}),
            ("D's judgement left out", every, {"alpha": 0.0}),
            ("T's predictions left out", every, {"beta": 0.0}),
            ("T is no part of D's samples and deceives nobody", every, {"alpha": 1.0}),
            ("T does not follow the student", every, {"gamma": 0.0}),
        )
    }
    rows["plain"] = after(*every)
    assert torch.equal(rows["the whole game"], after(*every, posterior=KDGAN()))
    assert_all_differ(rows)


def selective(maps):
    """MMD^2's Gram matrix over positions, of the channels' patterns of length 1."""
    rows = maps.flatten(2) / maps.flatten(2).norm(dim=2, keepdim=True).clamp(min=1e-12)
    return torch.einsum("bcp,bcq->bpq", rows, rows) / rows.shape[1]


def added_by_hand(name, course, images, reading_t, reading_s):
    """The posterior's loss from its formula; ``reading_t`` and ``reading_s`` are the readings of teacher and student."""
    if name == "soft labels":
        return -(reading_t.logits.softmax(1) * reading_s.logits.log_softmax(1)).sum(1).mean()
    if name == "nst":
        distance = (selective(reading_s["layer3"]) - selective(reading_t["layer3"])).square().sum((1, 2)).mean()
        return 50 / 2 * distance
    assert name == "kdgan"
    noise = gumbel_noise(SEED, STEP, batch().index, 10, 2 * 2).float()  # the student's side, C's samples
    temperature = 1 - 0.9 * STEP / (STEPS - 1)
    sample = ((reading_s.logits + noise) / temperature).softmax(1)
    score = course.setting.shared["discriminator"](reading_t["layer3"].mean((2, 3)), sample)
    copy_logits = course.setting.shared["teacher_copy"](images).detach()
    p, log_p = (copy_logits / 4).softmax(1), (copy_logits / 4).log_softmax(1)
    divergence = (p * (log_p - (reading_s.logits / 4).log_softmax(1))).sum(1).mean()
    return 0.5 * (1 - score.sigmoid()).log().mean() + 16 * divergence


@pytest.mark.parametrize("name", ["soft labels", "nst", "kdgan"])
def test_step_a_is_the_step_on_labels_plus_posterior(name):
    """The student's step by hand: cross-entropy plus the posterior's formula, then SGD with its L2 term."""
    course = Course(**WAYS[name])
    twin = fs.create("resnet8", num_classes=10, in_channels=1, width=0.5).train()
    twin.load_state_dict(course.student.state_dict())
    course.play("discriminator", "teacher_copy")
    given = batch()
    with torch.no_grad():
        reading_t = Tapped(course.teacher, ["layer3"])(given.images)
    reading_s = Tapped(twin, ["layer3"])(given.images)
    loss = F.cross_entropy(reading_s.logits, given.labels) + added_by_hand(
        name, course, given.images, reading_t, reading_s
    )
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    course.play("aggregate")
    for (path, parameter), start, gradient in zip(
        course.student.named_parameters(), twin.parameters(), gradients, strict=True
    ):
        expected = start.detach() - LR * (gradient + DECAY * start.detach())
        torch.testing.assert_close(
            parameter.detach(), expected, rtol=1e-4, atol=1e-6, msg=lambda m, p=path: f"{p}: {m}"
        )
