"""The game of KDGAN within the engine: who moves, what each part does, exact resumption, spec (f)."""

import signal

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import flowstill as fs
from flowstill.data.batch import Batch
from flowstill.data.spec import Augment, Data
from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.engine.runner import StageRunner
from flowstill.knowledge.base import Setting
from flowstill.knowledge.kdgan import KDGAN, gumbel_noise
from flowstill.nets import save_weights
from flowstill.recipes.check import check
from flowstill.recipes.load import dump_recipe
from flowstill.recipes.schema import Job, Net, Recipe
from flowstill.sections import pair_sections
from flowstill.taps import Tapped
from flowstill.transfer.procedures import adversarial, alone, alternating, with_adversaries

SHAPE = (1, 8, 8)


def networks(seed=0, classes=10):
    torch.manual_seed(seed)
    make = lambda name: fs.create(name, num_classes=classes, in_channels=1, width=0.25)  # noqa: E731
    return make("resnet14").requires_grad_(False).eval(), make("resnet8")


def batch(count=6, step=3, steps=10, seed=0):
    images = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return Batch(images, torch.arange(count) % 10, torch.arange(count) + 20, torch.zeros(count, dtype=torch.long), step, steps)  # fmt: skip


def read(network, images, taps=()):
    with torch.no_grad():
        return Tapped(network, taps)(images)


def runner_of(stage, teacher, student, seed=0):
    torch.manual_seed(1)
    setting = Setting(teacher, student, SHAPE, 10, seed=seed)
    return StageRunner(
        make_fabric("cpu", 1, Precision()), student, stage, pair_sections(teacher, student, SHAPE), setting
    )


def play(runner, teacher, given, updates=(0, 1, 2), step=0):
    taps, _ = runner.teacher_needs(updates)
    reading = read(teacher, given.images, taps)
    return [runner.update(number, given, reading, step) for number in updates]


def kept(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same(before, module):
    return all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_each_update_moves_one_player_and_nothing_else():
    teacher, student = networks()
    (stage,) = adversarial(steps=10, lr=0.05)
    runner = runner_of(stage, teacher, student)
    loss = runner.learner.losses[0]
    players = [loss.discriminator, loss.teacher_copy, student]
    assert all(
        other.teacher_copy is loss.teacher_copy for other in runner.learner.losses if hasattr(other, "teacher_copy")
    )
    frozen = kept(teacher)
    for number, mover in enumerate(players):
        before = [kept(player) for player in players]
        play(runner, teacher, batch(), (number,))
        for state, player in zip(before, players, strict=True):
            assert same(state, player) == (player is not mover)
    assert same(frozen, teacher)
    assert int(student.bn1.num_batches_tracked) == 1  # in its own update alone


def test_without_any_part_the_students_next_weights_differ():
    given, weights = batch(10), {}
    for name, options, updates in (
        ("whole", {}, (0, 1, 2)), ("D stands still", {}, (1, 2)), ("T stands still", {}, (0, 2)), ("both", {}, (2,)),
        ("no D", {"alpha": 0.0}, (0, 1, 2)), ("no T", {"beta": 0.0}, (0, 1, 2)),
    ):  # fmt: skip
        teacher, student = networks()
        (stage,) = adversarial(steps=10, lr=0.05, game=KDGAN(**options))
        play(runner_of(stage, teacher, student), teacher, given, updates)
        weights[name] = student.layer2[0].conv1.weight.detach().clone()
    found = list(weights.values())
    assert all(torch.isfinite(w).all() for w in found)
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_the_game_depends_on_the_seed_and_on_nothing_else_that_is_random():
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


def trained_game(lr, steps, updates, teacher, student, images, labels):
    """The game's losses after so many batches, of which only these updates run."""
    (stage,) = adversarial(steps=steps, lr=lr)
    runner = runner_of(stage, teacher, student)
    for step in range(steps):
        index = torch.arange(64) + 64 * (step % 8)
        play(runner, teacher, Batch(images[index], labels[index], index, index, step, steps), updates, step)
    runner.close()
    return runner.learner.losses[0]


def scores(loss, teacher, *judged):
    """D's logits on 400 images it has not seen: for the true labels, and for one sampled label each of these networks."""
    new, truth = prototypes(400, seed=1)
    features = read(teacher, new, loss.teacher_taps)["layer3"].mean((2, 3))
    noise = gumbel_noise(77, 0, torch.arange(400), 10).float()
    with torch.no_grad():
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
    """It tells true labels from wrong ones, and from samples of C and T, which learn all the while."""
    teacher, student, *data = learnt()
    frozen = kept(teacher)
    loss = trained_game(0.01, 150, (0, 1, 2), teacher, student, *data)
    assert same(frozen, teacher)
    real, *drawn, wrong = scores(loss, teacher, student.eval(), loss.teacher_copy)
    assert ahead(real, wrong) > 0.8
    assert all(ahead(real, samples) > 0.54 for samples in drawn)


def test_the_discriminator_sees_through_a_poor_classifier():
    """A student that has learnt nothing: on unseen images nearly all of its labels are told from the true ones."""
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


def test_knowledge_representing_plays_it_too():
    """KR + KDGAN: D and T move before step A, whose prediction loss holds the student's side."""
    teacher, student = networks()
    (stage,) = alternating(steps=10, lr=0.05, match_lr=0.01, posterior="kdgan")
    stage = with_adversaries(stage)
    assert [update.player for update in stage.updates] == ["discriminator", "teacher_copy", "aggregate", "student"]
    assert stage.players["teacher_copy"].lr.at(0, 10) == pytest.approx(0.005)
    runner, before = runner_of(stage, teacher, student), kept(student)
    losses = play(runner, teacher, batch(), range(4))
    assert [set(row) for row in losses] == [{"kdgan"}, {"kdgan"}, {"labels", "kdgan", "aggregation"}, {"aggregated"}]
    assert not same(before, student)


PLAIN = {"device": "cpu", "precision": "32", "progress": False}


def recipe(teacher, steps=6):
    student = Job(Net("resnet8", {"width": 0.25}), adversarial(steps=steps, lr=0.05), teacher="teacher")
    jobs = {"teacher": Job(Net("resnet14", {"width": 0.25}), weights=str(teacher)), "student": student}
    return Recipe("kdgan", Data("digits", batch=32, augment=Augment(shift=1)), jobs)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    teacher, _ = networks()
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_weights(teacher, path)
    return path


def test_a_recipe_is_checked_without_memory_and_survives_yaml(weights, tmp_path):
    given = recipe(weights)
    plan = check(given, SHAPE, 10)["student"]
    assert [(name, teacher) for name, teacher, _ in plan.terms["adversarial"]] == [
        ("kdgan", ("layer3",)), ("kdgan", ("layer3",)), ("labels", ()), ("kdgan", ("layer3",))]  # fmt: skip
    (tmp_path / "kdgan.yaml").write_text(dump_recipe(given))
    assert fs.load_recipe(tmp_path / "kdgan.yaml") == given


def test_a_run_resumes_bit_for_bit_and_leaves_the_teacher(weights, tmp_path):
    """D, T, their optimisers and the noise go on where they were."""
    given = recipe(weights)
    whole = fs.train(given, tmp_path / "whole", **PLAIN)

    def interrupt(job, stage, steps):
        if steps == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fs.train(given, tmp_path / "part", on_step=interrupt, **PLAIN)
    again = fs.train(given, tmp_path / "part", resume=True, **PLAIN)
    one, other = (load_file(run.path / "student.safetensors") for run in (whole, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert set(one) == set(networks()[1].state_dict())
    before, after = load_file(weights), load_file(whole.path / "teacher.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    rows = [line.split(",") for line in (whole.path / "metrics.csv").read_text().splitlines()]
    assert len({row[3] for row in rows if row[3].startswith("train/")}) == 4  # the three sides apart, and the labels


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """BatchNorm normalises by each process's own half, so networks without it are compared."""
    source = tmp_path / "net.py"
    source.write_text(
        "from torch import nn\n"
        "def make(num_classes, in_channels):\n"
        "    conv = lambda i, o, s: nn.Sequential(nn.Conv2d(i, o, 3, s, 1), nn.ReLU())\n"
        "    return nn.Sequential(conv(in_channels, 8, 1), conv(8, 8, 1), conv(8, 16, 2), conv(16, 16, 1),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))\n"
    )
    net = Net(f"{source}:make")
    student = Job(net, adversarial(steps=4, lr=0.05), teacher="teacher")
    given = Recipe("two", Data("digits", batch=32), {"teacher": Job(net, alone(4, 0.05), seed=1), "student": student})
    one, two = (
        load_file(fs.train(given, tmp_path / str(n), devices=n, **PLAIN).path / "student.safetensors") for n in (1, 2)
    )
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
