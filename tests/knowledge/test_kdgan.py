"""KDGAN: the three sides' losses, the noise and the stage, against loops and theory."""

from dataclasses import replace

import pytest
import torch

import flowstill as fs
from flowstill.data.batch import Batch
from flowstill.data.keyed import Purpose, bits, key_of, uniform
from flowstill.features.pairs import pair_sections
from flowstill.features.taps import Tapped
from flowstill.knowledge.kdgan import (
    KDGAN,
    TeacherCopy,
    adversarial,
    discrimination_loss,
    gumbel_noise,
    gumbel_softmax,
    gumbel_temperature,
    with_adversaries,
)
from flowstill.knowledge.representing import alternating
from flowstill.transfer.knowledge import Setting
from flowstill.transfer.schedules import Constant, Cosine, Linear, Milestones
from oracles import kdgan as oracle
from oracles.baselines import soft_logits

SHAPE = (1, 8, 8)
SIDES = ("discriminator", "teacher", "student")


def networks(seed=0, classes=10):
    torch.manual_seed(seed)
    make = lambda name: fs.create(name, num_classes=classes, in_channels=1, width=0.25)  # noqa: E731
    return make("resnet14").requires_grad_(False).eval(), make("resnet8")


def batch(count=6, step=3, steps=10, seed=0):
    images = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return Batch(
        images, torch.arange(count) % 10, torch.arange(count) + 20, torch.zeros(count, dtype=torch.long), step, steps
    )


def built(**options):
    """Each side's loss, the teacher's copy moved away from the teacher."""
    teacher, student = networks()
    setting = Setting(teacher, student, SHAPE, 10, seed=5)
    pairs = pair_sections(teacher, student, SHAPE)
    losses = {side: KDGAN(side=side, **options).build(pairs, setting) for side in SIDES}
    with torch.no_grad():
        for parameter in setting.shared["teacher_copy"].parameters():
            parameter.mul_(1.1)
    return teacher, student, losses, setting.shared


def read(network, images, taps=()):
    with torch.no_grad():
        return Tapped(network, taps)(images)


def test_noise_is_gumbel_of_the_keyed_uniforms():
    index = torch.tensor([4, 0, 17])
    noise = gumbel_noise(9, 2, index, 5, draw=3)
    for row, i in enumerate(index):
        for c in range(5):
            random = bits(key_of(9, Purpose.GUMBEL), *(torch.tensor(n) for n in (2, 3, int(i), c)))
            assert float(noise[row, c]) == pytest.approx(oracle.gumbel(float(uniform(random))), rel=1e-9)
    others = [gumbel_noise(8, 2, index, 5, 3), gumbel_noise(9, 1, index, 5, 3), gumbel_noise(9, 2, index, 5, 2)]
    assert not any(torch.equal(noise, other) for other in others)


def test_noise_is_distributed_as_gumbel():
    """Its mean is Euler's constant, its variance pi^2 / 6; argmax(logits + noise) is a sample of softmax(logits)."""
    noise = gumbel_noise(1, 0, torch.arange(20_000), 3)
    assert float(noise.mean()) == pytest.approx(0.5772157, abs=0.02)
    assert float(noise.var()) == pytest.approx(torch.pi**2 / 6, rel=0.03)
    logits = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    drawn = gumbel_softmax(logits, noise, 0.1).argmax(1)
    shares = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(shares.double(), logits.softmax(0), atol=0.015, rtol=0)


def test_samples_are_on_the_simplex_and_sharpen_along_the_line():
    logits, noise = (
        torch.randn(50, 10, generator=torch.Generator().manual_seed(0)),
        gumbel_noise(0, 0, torch.arange(50), 10),
    )
    peaks = []
    for step in range(11):
        sample = gumbel_softmax(logits, noise.float(), gumbel_temperature(step, 11))
        torch.testing.assert_close(sample.sum(1), torch.ones(50))
        peaks.append(float(sample.max(1).values.mean()))
    assert peaks == sorted(peaks)
    assert peaks[0] < 0.7 < 0.9 < peaks[-1]
    assert (gumbel_temperature(0, 1), gumbel_temperature(0, 5), gumbel_temperature(4, 5)) == (
        1.0,
        1.0,
        pytest.approx(0.1),
    )


def test_a_blind_discriminator_has_a_loss_of_two_log_two():
    zeros = torch.zeros(3)
    torch.testing.assert_close(
        discrimination_loss(zeros, zeros, zeros, 0.3), torch.full((3,), 2 * torch.tensor(2.0).log())
    )


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_each_side_equals_the_loops(side, alpha):
    teacher, student, losses, shared = built(
        alpha=alpha, beta=0.7, gamma=0.4, temperature=3.0, teacher_labels=0.6, hidden=7
    )
    loss, given = losses[side], batch()
    given.labels[[1, 4]] = -1
    reading, reading_s = read(teacher, given.images, loss.teacher_taps), read(student.eval(), given.images)
    target = loss.target(reading, given)
    copy_logits = read(shared["teacher_copy"], given.images).logits
    d = shared["discriminator"].double()
    weights = (d.first.weight.tolist(), d.first.bias.tolist(), d.second.weight[0].tolist(), d.second.bias.item())
    d.float()
    number = 2 * SIDES.index(side)
    noise = [gumbel_noise(5, 3, given.index, 10, number + i).tolist() for i in (0, 1)]
    features = [
        [sum(map(sum, rows)) / (len(rows) * len(rows[0])) for rows in maps] for maps in reading["layer3"].tolist()
    ]
    expected = oracle.side(
        side,
        reading_s.logits.tolist(),
        copy_logits.tolist(),
        features,
        given.labels.tolist(),
        noise,
        1 - 0.9 * 3 / 9,
        weights,
        alpha,
        0.7,
        0.4,
        3.0,
        0.6,
    )
    assert float(loss.compare(reading_s, target).detach()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("alpha", "matters"), [(1.0, {"student"}), (0.0, {"teacher"}), (0.5, {"student", "teacher"})])
def test_alpha_decides_whose_samples_the_discriminator_sees(alpha, matters):
    """With alpha = 1 nothing of T reaches D's loss and gradient, with 0 nothing of C."""
    teacher, student, losses, shared = built(alpha=alpha)
    loss, given = losses["discriminator"], batch()
    student.eval()
    with torch.no_grad():
        others = {"student": fs.create("resnet8", num_classes=10, in_channels=1, width=0.25).eval()(given.images)}
        others["teacher"] = shared["teacher_copy"](given.images).flip(1)

    def learnt(**instead):
        target = loss.target(read(teacher, given.images, loss.teacher_taps), given)
        reading_s = read(student, given.images)
        target = target._replace(teacher=instead.get("teacher", target.teacher))
        value = loss.compare(
            replace(reading_s, logits=instead["student"]) if "student" in instead else reading_s, target
        )
        return [value.detach(), *torch.autograd.grad(value, list(shared["discriminator"].parameters()))]

    before = learnt()
    for side, logits in others.items():
        same = all(torch.equal(a, b) for a, b in zip(before, learnt(**{side: logits}), strict=True))
        assert same == (side not in matters)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_with_alpha_one_the_teachers_copy_has_no_adversarial_loss(gamma):
    """What is left of its side is gamma L_DS^T, and the labels."""
    teacher, student, losses, shared = built(alpha=1.0, gamma=gamma, teacher_labels=0.0)
    loss, given = losses["teacher"], batch()
    reading_s = read(student.eval(), given.images)
    value = loss.compare(reading_s, loss.target(read(teacher, given.images, loss.teacher_taps), given))
    copy_logits = read(shared["teacher_copy"], given.images).logits
    expected = gamma * soft_logits(copy_logits.tolist(), reading_s.logits.tolist(), 4.0, "kl", True)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_a_batch_without_labels_leaves_the_discriminator_alone():
    teacher, student, losses, shared = built()
    loss, given = losses["discriminator"], batch()
    given.labels[:] = -1
    value = loss.compare(
        read(student, given.images), loss.target(read(teacher, given.images, loss.teacher_taps), given)
    )
    value.backward()
    assert float(value.detach()) == 0.0
    assert all(float(p.grad.abs().sum()) == 0.0 for p in shared["discriminator"].parameters())


def test_gradients_reach_only_each_sides_own_player():
    for side, reached in (("discriminator", {"d"}), ("teacher", {"d", "t"}), ("student", {"d", "c"})):
        teacher, student, losses, shared = built()
        loss, given = losses[side], batch()
        target = loss.target(read(teacher, given.images, loss.teacher_taps), given)
        loss.compare(Tapped(student)(given.images), target).backward()
        players = {"d": shared["discriminator"], "t": shared["teacher_copy"], "c": student, "teacher": teacher}
        assert {name for name, m in players.items() if any(p.grad is not None for p in m.parameters())} == reached
        # D's are dropped: only its own side offers it to be moved.
        assert (
            list(loss.parts()) == {"discriminator": ["discriminator"], "teacher": ["teacher_copy"], "student": []}[side]
        )


def test_the_copy_is_the_teacher_at_first_and_stays_in_eval_mode():
    teacher, _ = networks()
    copy, images = TeacherCopy(teacher).train(), batch().images
    assert torch.equal(copy(images).detach(), teacher(images))
    assert not any(module.training for module in copy.modules())
    assert all(p.requires_grad for p in copy.parameters())
    assert not any(a is b for a, b in zip(copy.parameters(), teacher.parameters(), strict=True))


def test_float32_out_of_bfloat16_autocast():
    teacher, student, losses, _ = built()
    given = batch()

    def values():
        reading, reading_s = (
            read(teacher, given.images, losses["student"].teacher_taps),
            read(student.eval(), given.images),
        )
        return [loss.compare(reading_s, loss.target(reading, given)).detach() for loss in losses.values()]

    exact = values()
    with torch.autocast("cpu", torch.bfloat16):
        half = values()
    for a, b in zip(exact, half, strict=True):
        assert b.dtype == torch.float32
        assert float(b) == pytest.approx(float(a), rel=0.05, abs=0.01)


def test_invalid_options_are_an_error():
    with pytest.raises(fs.RecipeError, match="side"):
        KDGAN(side="judge")
    teacher, student = networks()
    setting, pairs = Setting(teacher, student, SHAPE, 10), pair_sections(teacher, student, SHAPE)
    KDGAN().build(pairs, setting)
    with pytest.raises(fs.RecipeError, match="'hidden: 128' in one term and 64"):
        KDGAN(hidden=64, side="teacher").build(pairs, setting)
    other, _ = networks(classes=7)
    loss, given = KDGAN().build(pairs, Setting(other, student, SHAPE, 10)), batch()
    with pytest.raises(fs.ShapeError, match="teacher gives 7 and the student 10"):
        loss.compare(read(student, given.images), loss.target(read(other, given.images, loss.teacher_taps), given))


def test_a_batch_has_three_updates_each_with_its_own_rate():
    (stage,) = adversarial(steps=100, lr=Milestones({0: 0.1, 50: 0.01}))
    (cycle,) = stage.cycle
    assert [update.player for update in cycle] == ["discriminator", "teacher_copy", "student"]
    assert [update.update_batchnorm for update in cycle] == [False, False, True]
    assert [[(t.knowledge.name, t.weight) for t in update.terms] for update in cycle] == [
        [("kdgan", Constant(1.0))],
        [("kdgan", Constant(1.0))],
        [("labels", Constant(1.0)), ("kdgan", Constant(1.0))],
    ]
    players = stage.players
    assert players["discriminator"].optimizer.name == "adam"
    assert players["discriminator"].lr == Constant(1e-3)
    for step in (0, 49, 50, 99):
        assert players["teacher_copy"].lr.at(step, 100) == pytest.approx(players["student"].lr.at(step, 100) / 100)


@pytest.mark.parametrize("lr", [Constant(0.1), Linear((0.1, 0.01)), Cosine(0.4, warmup=0.2)])
def test_the_copys_rate_is_a_hundredth_of_any_schedule(lr):
    (stage,) = adversarial(steps=20, lr=lr)
    for step in (0, 3, 19):
        assert stage.players["teacher_copy"].lr.at(step, 20) == pytest.approx(lr.at(step, 20) / 100)


def test_a_stage_without_the_game_has_no_adversaries():
    with pytest.raises(fs.RecipeError, match="no term 'kdgan'"):
        with_adversaries(alternating(steps=2, lr=0.1, match_lr=0.1)[0])


def test_games_are_only_played_in_their_own_batches():
    (stage,) = adversarial(steps=4, lr=0.1)
    ((*_, student),) = stage.cycle
    plain = replace(student, transfer=())
    cycle = with_adversaries(
        replace(stage, players={"student": stage.players["student"]}, cycle=((plain,), (student,)))
    ).cycle
    assert [[update.player for update in updates] for updates in cycle] == [
        ["student"],
        ["discriminator", "teacher_copy", "student"],
    ]
