"""Sparse recoding as a player's."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import flowstill as fs
from flowstill.data.batch import Batch
from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.recipes.load import load_recipe
from flowstill.recipes.recipe import Data, Job, Net, Optimizer, Player, Recipe, Stage, Update
from flowstill.transfer.knowledge import Setting
from flowstill.transfer.recoding import Recoding, SparseRecoding
from support.stage_runners import StudentByHand

PLAIN_SGD = Optimizer(momentum=0.0, weight_decay=0.0)


def runner(student, recoding, optimizer=PLAIN_SGD, precision="32"):
    stage = Stage(
        "task", 4, {"student": Player(lr=0.1, optimizer=optimizer, recode=recoding)}, ((Update(task="labels"),),)
    )
    fabric = make_fabric("cpu", 1, Precision(precision))
    return StudentByHand(fabric, student, stage, (), Setting(None, student, (1, 8, 8), 10))


def batch(seed=0):
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Batch(images, torch.arange(16) % 10, torch.arange(16), torch.zeros(16, dtype=torch.long))


def resnet(seed=0):
    torch.manual_seed(seed)
    return fs.create("resnet8", num_classes=10, in_channels=1, width=0.25)


@pytest.mark.parametrize("mode", ["recode", "recode_soft", "double_backward"])
def test_a_player_recodes_like_the_wrapper(mode):
    """The engine's update equals a plain loop with SparseRecoding, decay and momentum included."""
    recoded, plain = resnet(), resnet().train()
    options = {"mode": mode, "lr": 0.2, "strength": 0.5 if mode != "double_backward" else 1e-4}
    decayed = Optimizer(momentum=0.9, weight_decay=0.01)
    moved = runner(recoded, Recoding(**options), decayed)
    optimizer = SparseRecoding(torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01), **options)
    for step in range(3):
        moved.update(0, batch(step), None, step)
        optimizer.zero_grad()
        given = batch(step)
        nn.functional.cross_entropy(plain(given.images), given.labels).backward(create_graph=mode == "double_backward")
        optimizer.step()
    for (name, a), b in zip(recoded.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
    assert moved.players["student"].recoder.thresholds == pytest.approx(optimizer.thresholds, rel=1e-4)


@pytest.mark.parametrize("mode", ["recode", "double_backward"])
def test_a_player_recodes_in_bfloat16(mode):
    student = resnet()
    before = [p.detach().clone() for p in student.parameters()]
    moved = runner(student, Recoding(mode=mode, strength=1e-4), precision="bf16")
    loss = moved.update(0, batch(), None, 0)["labels"]
    assert loss.dtype == torch.float32
    assert all(torch.isfinite(p).all() for p in student.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


def test_a_player_with_zero_threshold_and_strength_is_the_plain_player_to_the_bit():
    one, other = resnet(), resnet()
    coded, plain = runner(one, Recoding(fixed=0.0, strength=0.0)), runner(other, None)
    for step in range(3):
        coded.update(0, batch(step), None, step)
        plain.update(0, batch(step), None, step)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_player_recodes_the_rules_result_and_skips_unused_parameters():
    student = resnet()
    with torch.no_grad():
        start = [p.clone() for p in student.parameters()]
    moved = runner(student, Recoding(fixed=1e9))
    moved.update(0, batch(), None, 0)
    assert all(torch.equal(a, b) for a, b in zip(start, student.parameters(), strict=True))  # nothing passes


def test_the_active_share_is_in_the_metrics_of_players_that_recode(tmp_path):
    """Of each by its name, as the learning rate is; a threshold of zero lets all pass, one that is huge nothing."""
    labels, optimizer = Update(task="labels"), Optimizer()
    players = {
        "all": Player(optimizer=optimizer, recode=Recoding(fixed=0.0)),
        "none": Player(optimizer=optimizer, recode=Recoding(fixed=1e9)),
        "plain": Player(optimizer=optimizer),
    }
    both = Stage("both", 4, players, (tuple(replace(labels, player=name) for name in players),))
    alone = Stage("alone", 3, {"student": Player(recode=Recoding())}, ((labels,),))
    network = Net("resnet8", {"width": 0.25})
    recipe = Recipe("r", Data("digits", batch=16), {"student": Job(network, (both, alone))})
    run = fs.train(recipe, tmp_path / "run", device="cpu", precision="32", progress=False)
    found = {}
    for row in run.metrics():
        if row.metric.startswith("active_share"):
            found.setdefault((row.stage, row.metric), []).append(row.value)
    assert {key for key in found if key[0] == "both"} == {("both", "active_share/all"), ("both", "active_share/none")}
    assert all(share > 0.9 for share in found["both", "active_share/all"])  # but for gradients that are zero
    assert found["both", "active_share/none"] == [0.0] * 4
    assert [key for key in found if key[0] == "alone"] == [("alone", "active_share")]
    assert all(0.05 < share < 0.6 for share in found["alone", "active_share"])


def test_a_recipe_can_ask_for_recoding(tmp_path):
    text = """
name: r
data: {name: digits}
jobs:
  student:
    network: resnet8
    stages:
      - {name: task, steps: 2, players: {student: {lr: 0.1, recode: {mode: recode_soft, strength: 0.5}}}, cycle: [{task: labels}]}
"""
    path = tmp_path / "r.yaml"
    path.write_text(text)
    (stage,) = load_recipe(path).jobs["student"].stages
    assert stage.players["student"].recode == Recoding("recode_soft", 0.5)
    path.write_text(text.replace("recode_soft", "recodes"))
    with pytest.raises(fs.RecipeError, match="recode_soft"):
        load_recipe(path)
