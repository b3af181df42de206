"""Jobs in lockstep: common work is done once."""

from dataclasses import replace

import pytest
import torch

import flowstill as fs
from flowstill.knowledge.fsp import FSP, FSPLoss
from flowstill.recipes.recipe import Job, Net, Term
from flowstill.transfer.procedures import joint
from flowstill.transfer.schedules import Constant
from flowstill.transfer.stages import Live
from support.compared_runs import weights
from support.stored_recipes import CROPS, PLAIN, recipe


@pytest.fixture
def made(monkeypatch):
    """For how many images each call made the teacher's matrices."""
    sizes, plain = [], FSPLoss.target

    def target(self, teacher, batch=None):
        sizes.append(len(teacher.images))
        return plain(self, teacher, batch)

    monkeypatch.setattr(FSPLoss, "target", target)
    return sizes


def group(*knowledge, data=CROPS):
    """Three students of other depths, each with a knowledge of its own."""
    stages = [joint(one, steps=3, lr=0.05) for one in knowledge]
    nets = [Net(name, {"width": 0.25}) for name in ("resnet14", "resnet20")]
    others = {net.name: Job(net, stage, teacher="teacher") for net, stage in zip(nets, stages[1:], strict=True)}
    apart = recipe(stages[0], Live(), data, **others)
    return apart, replace(apart, together=(("student", *others),))


def same_weights(run, other):
    for job in run.jobs:
        one, two = weights(run, job), weights(other, job)
        assert all(torch.equal(one[name], two[name]) for name in one), job


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_common_target_is_computed_once(tmp_path, made, accumulate):
    apart, together = group("fsp", "fsp", "fsp", data=replace(CROPS, accumulate=accumulate))
    runs = [fs.train(together, tmp_path / "together", **PLAIN)]
    assert made == [32] * 3
    made.clear()
    runs.append(fs.train(apart, tmp_path / "apart", **PLAIN))
    assert sum(made) == 3 * 3 * 32
    assert len(made) == 3 * 3 * accumulate
    same_weights(*runs)


def test_another_knowledge_has_another_target(tmp_path, made):
    """Sections 0 and 1 have other matrices than all; another weight of the term does not change the target."""
    apart, together = group("fsp", FSP(sections=(0, 1)), Term(FSP(), Constant(2.0)))
    runs = [fs.train(one, tmp_path / str(number), **PLAIN) for number, one in enumerate((together, apart))]
    assert made[: 3 * 2] == [32] * 3 * 2  # in each step, one for two jobs and one for the third
    assert len(made) == 3 * 2 + 3 * 3
    same_weights(*runs)
