"""The game of KDGAN within the engine: who moves, what each part does, exact resumption."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import flowstill as fs
from flowstill.data.batch import Batch
from flowstill.data.spec import Augment, Data
from flowstill.features.taps import Tapped
from flowstill.knowledge.kdgan import KDGAN, adversarial, gumbel_noise, with_adversaries
from flowstill.knowledge.representing import alternating
from flowstill.nets import save_weights
from flowstill.recipes.check import check
from flowstill.recipes.load import dump_recipe
from flowstill.recipes.recipe import Job, Net, Recipe
from flowstill.transfer.procedures import alone
from flowstill.transfer.schedules import Constant
from support.compared_runs import PLAIN, assert_near, assert_same, resumed, rows, weights
from support.stage_runners import kept, moved, read_teacher, stage_runner
from support.without_batchnorm import TWO_SECTIONS

SHAPE = (1, 8, 8)


def networks(seed=0, classes=10):
    torch.manual_seed(seed)
    make = lambda name: fs.create(name, num_classes=classes, in_channels=1, width=0.25)  # noqa: E731
    return make("resnet14").requires_grad_(False).eval(), make("resnet8")


def batch(count=6, step=3, steps=10, seed=0):
    images = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return Batch(
        images, torch.arange(count) % 10, torch.arange(count) + 20, torch.zeros(count, dtype=torch.long), step, steps
    )


def runner_of(stage, teacher, student, seed=0):
    torch.manual_seed(1)
    return stage_runner(stage, teacher, student, SHAPE, seed)


def play(runner, teacher, given, updates=(0, 1, 2), step=0):
    reading = read_teacher(runner, teacher, given.images, updates)
    return [runner.update(number, given, reading, step) for number in updates]


def test_each_update_moves_one_player_and_nothing_else():
    teacher, student = networks()
    (stage,) = adversarial(steps=10, lr=0.05)
    runner = runner_of(stage, teacher, student)
    loss = runner.module.losses[0]
    players = [loss.discriminator, loss.teacher_copy, student]
    assert all(
        other.teacher_copy is loss.teacher_copy for other in runner.module.losses if hasattr(other, "teacher_copy")
    )
    frozen = kept(teacher)
    for number, mover in enumerate(players):
        before = [kept(player) for player in players]
        play(runner, teacher, batch(), (number,))
        for state, player in zip(before, players, strict=True):
            assert bool(moved(state, player)) == (player is mover)
    assert not moved(frozen, teacher)
    assert int(student.bn1.num_batches_tracked) == 1  # in its own update alone


def test_without_any_part_the_students_next_weights_differ():
    given, weights = batch(10), {}
    for name, options, updates in (
        ("whole", {}, (0, 1, 2)),
        ("D stands still", {}, (1, 2)),
        ("T stands still", {}, (0, 2)),
        ("both", {}, (2,)),
        ("no D", {"alpha": 0.0}, (0, 1, 2)),
        ("no T", {"beta": 0.0}, (0, 1, 2)),
    ):
        teacher, student = networks()
        (stage,) = adversarial(steps=10, lr=0.05, game=KDGAN(**options))
        play(runner_of(stage, teacher, student), teacher, given, updates)
        weights[name] = student.layer2[0].conv1.weight.detach().clone()
    found = list(weights.values())
    assert all(torch.isfinite(w).all() for w in found)
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_the_games_only_randomness_is_the_seed():
    states = []
    for seed, generator in ((0, 1), (0, 2), (1, 1)):
        teacher, student = networks()
        runner = runner_of(adversarial(steps=10, lr=0.05)[0], teacher, student, seed)
        torch.manual_seed(generator)
        play(runner, teacher, batch())
        states.append(student.layer2[0].conv1.weight.detach().clone())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def prototypes(count, seed):
    """Ten patterns in noise: images that a small network learns within some steps."""
    patterns = torch.randn(10, *SHAPE, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    return patterns[labels] + 0.7 * torch.randn(count, *SHAPE, generator=generator), labels


def learnt(count=512):
    """Images of ``prototypes`` with their labels, and a teacher that knows them."""
    teacher, student = networks()
    images, labels = prototypes(count, seed=0)
    teacher.requires_grad_(True).train()
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.1, momentum=0.9)
    for step in range(25):
        rows = slice(64 * (step % 8), 64 * (step % 8 + 1))
        optimizer.zero_grad()
        F.cross_entropy(teacher(images[rows]), labels[rows]).backward()
        optimizer.step()
    return teacher.requires_grad_(False).eval(), student, images, labels


def trained_game(lr, steps, updates, teacher, student, images, labels, **options):
    """The game's losses after so many batches, of which only these updates run. The copy has a tenth of the student's rate."""
    (stage,) = adversarial(steps=steps, lr=lr, game=KDGAN(**options))
    copy = replace(stage.players["teacher_copy"], lr=Constant(lr / 10))
    stage = replace(stage, players={**stage.players, "teacher_copy": copy})
    runner = runner_of(stage, teacher, student)
    for step in range(steps):
        index = torch.arange(64) + 64 * (step % 8)
        play(runner, teacher, Batch(images[index], labels[index], index, index, step, steps), updates, step)
    runner.close()
    return runner.module.losses[0]


def scores(loss, teacher, *judged):
    """D's logits on 400 images it has not seen: for the true labels, and for one sampled label each of these networks."""
    new, truth = prototypes(400, seed=1)
    noise = gumbel_noise(77, 0, torch.arange(400), 10).float()
    with torch.no_grad():
        features = Tapped(teacher, loss.teacher_taps)(new)["layer3"].mean((2, 3))
        labels = [
            truth,
            *((network(new) + noise).argmax(1) for network in judged),
            (truth + 1 + torch.arange(400) % 9) % 10,
        ]
        return [loss.discriminator(features, F.one_hot(label, 10).float()) for label in labels]


def ahead(real, drawn):
    """The share of images whose true label D puts above the other, a tie counting half."""
    return float(((real > drawn).float() + 0.5 * (real == drawn).float()).mean())


def right(real, drawn):
    """The share of D's right verdicts, half of the labels being true ones."""
    return (float((real > 0).float().mean()) + float((drawn < 0).float().mean())) / 2


def test_the_discriminator_beats_chance_on_images_it_has_not_seen():
    """It tells true labels from wrong ones, and from samples of C and T, which keep learning meanwhile.

    T trains without labels: with them all three soon agree on these images, and cannot be told apart.
    """
    teacher, student, *data = learnt()
    frozen = kept(teacher)
    loss = trained_game(0.01, 150, (0, 1, 2), teacher, student, *data, teacher_labels=0.0)
    assert not moved(frozen, teacher)
    real, *drawn, wrong = scores(loss, teacher, student.eval(), loss.teacher_copy)
    assert ahead(real, wrong) > 0.8
    assert all(ahead(real, samples) > 0.54 for samples in drawn)


def test_the_discriminator_sees_through_a_poor_classifier():
    """An untrained student: on unseen images nearly all of its labels are told from the true ones."""
    teacher, student, *data = learnt()
    student.eval()
    blind = trained_game(0.0, 1, (), teacher, student, *data)
    real, drawn, _ = scores(blind, teacher, student)
    assert abs(right(real, drawn) - 0.5) < 0.1
    loss = trained_game(0.0, 250, (0,), teacher, student, *data)
    real, drawn, wrong = scores(loss, teacher, student)
    assert ahead(real, drawn) > 0.85
    assert right(real, drawn) > 0.8
    assert ahead(real, wrong) > 0.9


def test_labels_keep_the_copy_accurate_against_an_untrained_student():
    """Half of them: the student's predictions alone would teach the copy to know nothing."""
    new, truth = prototypes(400, seed=1)
    knows = {}
    for weight in (0.0, 1.0):
        teacher, student, images, labels = learnt()
        labels[::2] = -1
        before = float((teacher(new).argmax(1) == truth).float().mean())
        loss = trained_game(0.1, 30, (1,), teacher, student.eval(), images, labels, teacher_labels=weight)
        knows[weight] = float((loss.teacher_copy(new).argmax(1) == truth).float().mean()) / before
    assert knows[1.0] > 0.9
    assert knows[0.0] < 0.5


def test_knowledge_representing_can_use_kdgan():
    """KR + KDGAN: D and T move before step A, whose prediction loss holds the student's side."""
    teacher, student = networks()
    (stage,) = alternating(steps=10, lr=0.05, match_lr=0.01, posterior="kdgan")
    stage = with_adversaries(stage)
    assert [update.player for update in stage.updates] == ["discriminator", "teacher_copy", "aggregate", "student"]
    assert stage.players["teacher_copy"].lr.at(0, 10) == pytest.approx(0.0005)
    runner, before = runner_of(stage, teacher, student), kept(student)
    losses = play(runner, teacher, batch(), range(4))
    assert [set(row) for row in losses] == [{"kdgan"}, {"kdgan"}, {"labels", "kdgan", "aggregation"}, {"aggregated"}]
    assert moved(before, student)


def recipe(teacher, steps=6):
    student = Job(Net("resnet8", {"width": 0.25}), adversarial(steps=steps, lr=0.05), teacher="teacher")
    jobs = {"teacher": Job(Net("resnet14", {"width": 0.25}), weights=str(teacher)), "student": student}
    return Recipe("kdgan", Data("digits", batch=32, augment=Augment(shift=1)), jobs)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    teacher, _ = networks()
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_weights(teacher, path)
    return path


def test_a_recipe_is_checked_without_memory_and_survives_yaml(teacher_file, tmp_path):
    given = recipe(teacher_file)
    plan = check(given, SHAPE, 10)["student"]
    assert [(name, teacher) for name, teacher, _ in plan.terms["adversarial"]] == [
        ("kdgan", ("layer3",)),
        ("kdgan", ("layer3",)),
        ("labels", ()),
        ("kdgan", ("layer3",)),
    ]
    (tmp_path / "kdgan.yaml").write_text(dump_recipe(given))
    assert fs.load_recipe(tmp_path / "kdgan.yaml") == given


def test_a_run_resumes_bit_for_bit_and_leaves_the_teacher(teacher_file, tmp_path):
    """D, T, their optimisers and the noise continue where they stopped."""
    given = recipe(teacher_file)
    whole = fs.train(given, tmp_path / "whole", **PLAIN)
    assert_same(resumed(given, tmp_path / "part", ("student", "adversarial", 3)), whole)
    assert set(weights(whole)) == set(networks()[1].state_dict())
    before, after = load_file(teacher_file), weights(whole, "teacher")
    assert all(torch.equal(before[name], after[name]) for name in before)
    losses = {row[3] for row in rows(whole) if row[3].startswith("train/")}
    assert len(losses) == 4  # the three sides apart, and the labels


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """BatchNorm normalises by each process's own half, so networks without it are compared."""
    teacher = Job(TWO_SECTIONS, alone(4, 0.05), seed=1)
    student = Job(TWO_SECTIONS, adversarial(steps=4, lr=0.05), teacher="teacher")
    data = Data("digits", batch=24, labels=200, unlabelled=9)  # the first process has more of the labels
    given = Recipe("two", data, {"teacher": teacher, "student": student})
    assert_near(*(fs.train(given, tmp_path / str(devices), devices=devices, **PLAIN) for devices in (1, 2)))
