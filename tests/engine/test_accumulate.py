"""A batch in parts: gradients as from the whole, task and transfer apart where a rule must see both."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import flowstill as fs
from flowstill.data.batch import Batch
from flowstill.data.spec import Data
from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.engine.teacher import TaughtBatch, Teacher
from flowstill.errors import RecipeError
from flowstill.features.pairs import pair_sections
from flowstill.knowledge.kdgan import adversarial
from flowstill.knowledge.representing import alternating
from flowstill.recipes.recipe import Job, Recipe
from flowstill.transfer.knowledge import Setting
from flowstill.transfer.procedures import alone, joint, stage
from flowstill.transfer.recoding import Recoding
from flowstill.transfer.rules import AdaptiveClip
from flowstill.transfer.stages import Update
from support.stage_runners import StudentByHand

SHAPE, CLASSES = (3, 12, 12), 5
MODES = ["official", "ce_norm", "global", "eq14_literal"]


def network():
    """Without BatchNorm, which sees each part by itself."""
    layers = [
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    ]
    return nn.Sequential(*layers)


def batch(dtype=torch.float64):
    """Seven images, of two of which the labels are unknown, unevenly over the parts."""
    torch.manual_seed(4)
    labels = torch.tensor([0, -1, 1, 2, -1, 3, 4])
    return Batch(torch.randn(7, *SHAPE).to(dtype), labels, torch.arange(7), torch.zeros(7, dtype=torch.long), steps=9)


def moved(made, accumulate, steps=3, dtype=torch.float64):
    """The student and what its losses own after some steps, and the losses of the last."""
    torch.manual_seed(0)
    teacher, student = network().to(dtype).requires_grad_(False).eval(), network().to(dtype)
    fabric = make_fabric("cpu", 1, Precision())
    pairs = pair_sections(teacher, student, SHAPE)
    torch.manual_seed(1)
    runner = StudentByHand(fabric, student, made, pairs, Setting(teacher, student, SHAPE, CLASSES), accumulate)
    runner.module.to(dtype)
    reader = Teacher(fabric, teacher)
    losses = {}
    for step in range(steps):
        for number in runner.slot(step):
            losses = runner.update(
                number, batch(dtype), reader.read(batch(dtype).images, runner.losses([number])), step
            )
    return copy.deepcopy(runner.module.state_dict()), losses


def lively(game):
    """KDGAN with a copy of the teacher that moves as much as the student."""
    players = game.players
    return replace(
        game, players={**players, "teacher_copy": replace(players["teacher_copy"], lr=players["student"].lr)}
    )


CASES = {
    "labels": lambda: alone(9, 0.1)[0],
    "fsp": lambda: stage("transfer", 9, 0.1, [Update(transfer=("fsp",))]),
    "sum over the batch": lambda: joint("svd", steps=9, lr=0.01)[0],
    "several terms": lambda: joint(["soft_logits", "nst", "hints"], steps=9, lr=0.01)[0],
    "kdgan": lambda: lively(adversarial(steps=9, lr=0.01)[0]),
    **{mode: lambda mode=mode: joint("fsp", steps=9, lr=0.1, rule=AdaptiveClip(mode=mode))[0] for mode in MODES},
}


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_move_the_student_like_the_whole_batch(name):
    dtype = torch.float32 if name == "kdgan" else torch.float64  # its discriminator is float32
    near = {"rtol": 1e-6, "atol": 1e-8} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
    whole, losses = moved(CASES[name](), 1, dtype=dtype)
    for accumulate in (2, 3, 7, 20):
        parts, said = moved(CASES[name](), accumulate, dtype=dtype)
        for key, value in whole.items():
            torch.testing.assert_close(parts[key], value, **near)
        assert said.keys() == losses.keys()
        assert all(said[key].item() == pytest.approx(losses[key].item(), rel=1e-5) for key in losses)


def test_a_rule_of_norms_does_not_see_single_parts():
    """Clipping part by part, which would be wrong, gives another student than clipping the whole."""
    made = CASES["global"]()
    whole, _ = moved(made, 1, steps=1)
    torch.manual_seed(0)
    teacher, student = network().double().requires_grad_(False).eval(), network().double()
    fabric = make_fabric("cpu", 1, Precision())
    runner = StudentByHand(
        fabric, student, made, pair_sections(teacher, student, SHAPE), Setting(teacher, student, SHAPE, CLASSES)
    )
    start = copy.deepcopy(student.state_dict())
    steps = {name: torch.zeros_like(value) for name, value in start.items()}
    for piece in TaughtBatch(batch()).split(7):
        student.load_state_dict(start)
        runner.players["student"].load(
            {"optimizer": copy.deepcopy(runner.players["student"].optimizer.state_dict()), "recoder": None}
        )
        reading = Teacher(fabric, teacher).read(piece.batch.images, runner.losses([0]))
        runner.update(0, piece.batch, reading, 0)
        for name, value in student.state_dict().items():
            steps[name] += (value - start[name]) / 7
    assert any(not torch.allclose(start[name] + steps[name], whole[f"student.{name}"], rtol=1e-4) for name in start)


def test_micro_batches_hold_every_image_once_in_order():
    given = batch()
    for count in (1, 2, 3, 7, 9):
        parts = list(TaughtBatch(given).split(count))
        sizes = [len(part.batch.images) for part in parts]
        assert len(parts) == min(count, 7)
        assert max(sizes) - min(sizes) <= 1
        assert torch.equal(torch.cat([part.batch.images for part in parts]), given.images)
        assert torch.equal(torch.cat([part.batch.index for part in parts]), given.index)


def test_more_micro_batches_than_images_are_refused():
    with pytest.raises(RecipeError, match="accumulate is 33, but a batch has only 32 images"):
        Data("digits", batch=32, accumulate=33)


def test_double_backward_is_refused_with_micro_batches():
    (made,) = alternating(steps=2, lr=0.1, match_lr=0.01, recode=Recoding(mode="double_backward"))
    with pytest.raises(RecipeError, match=r"data\.accumulate"):
        moved(made, 2)


def test_a_recipe_sets_the_number_of_micro_batches(tmp_path):
    """The engine hands it on: without BatchNorm in the way, the same losses with and without."""
    file = tmp_path / "plain.py"
    file.write_text(
        "from torch import nn\n"
        "def plain(num_classes=10, in_channels=1):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),\n"
        "                         nn.Flatten(), nn.Linear(6, num_classes))\n"
    )
    runs = {}
    for accumulate in (1, 3):
        recipe = Recipe(
            "r", Data("digits", batch=16, accumulate=accumulate), {"one": Job(f"{file}:plain", alone(5, 0.1))}
        )
        runs[accumulate] = fs.train(recipe, tmp_path / str(accumulate), device="cpu", precision="32", progress=False)
    one, three = (runs[count].network("one", trust_code=True).state_dict() for count in runs)
    assert all(torch.allclose(one[name], three[name], atol=1e-6) for name in one)
    assert runs[3].recipe["data"]["accumulate"] == 3
