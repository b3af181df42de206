"""One section trained by itself: layers below it keep their initial weights, and layers above get no gradient."""

import pytest
import torch

import flowstill as fs
from flowstill.data.batch import Batch
from flowstill.features.pairs import pair_sections
from flowstill.features.taps import Tap
from flowstill.knowledge.fsp import FSP
from flowstill.knowledge.hints import Hints
from flowstill.nets.resnet import ResNet
from flowstill.recipes.load import load_recipe
from flowstill.transfer.procedures import stage
from flowstill.transfer.stages import Optimizer, Update
from support.stage_runners import read_teacher, stage_runner

SECTIONS = ["layer1", "layer2", "layer3"]
SHAPE = (3, 8, 8)


@pytest.mark.parametrize("section", [1, 2])
@pytest.mark.parametrize("knowledge", [FSP, Hints])
def test_only_the_section_moves(knowledge, section):
    alone = Update(transfer=one(knowledge, section))
    everything = Update(transfer="fsp")
    torch.manual_seed(0)
    teacher, student = ResNet(14, width=(4, 6, 8)).eval(), ResNet(8, width=(4, 6, 8))
    # The other update gives everything a momentum that must not move it here.
    runner = stage_runner(
        stage("transfer", 4, 0.01, [everything, alone], Optimizer(weight_decay=0.01)), teacher, student, SHAPE
    )
    for t, expected in enumerate([{"conv1", "bn1", *SECTIONS}, {SECTIONS[section]}] * 2):
        (number,) = runner.slot(t)
        seen = batch(t)
        before = {name: p.detach().clone() for name, p in student.named_parameters()}
        runner.update(number, seen, read_teacher(runner, teacher, seen.images, [number]), t)
        changed = {name for name, p in student.named_parameters() if not torch.equal(before[name], p)}
        assert {name.split(".")[0] for name in changed} == expected


def batch(t):
    images = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(t))
    return Batch(images, torch.arange(8), torch.arange(8), torch.zeros(8, dtype=torch.long), step=t, steps=4)


def one(knowledge, section):
    return knowledge(**{"sections" if knowledge is FSP else "layers": (section,)}, freeze_below=True)


def test_several_sections_leave_everything_below_the_first_unchanged():
    network = ResNet(8, width=(4, 6, 8))
    pairs = pair_sections(network, network, (3, 8, 8))
    for loss in (
        FSP(sections=(2, 1), freeze_below=True).build(pairs),
        Hints(layers=(2, 1), freeze_below=True).build(pairs),
    ):
        assert loss.frozen_below == Tap("layer1")
    assert FSP(sections=(1,)).build(pairs).frozen_below is Hints(layers=(1,)).build(pairs).frozen_below is None


@pytest.mark.parametrize("knowledge", [FSP, Hints])
@pytest.mark.parametrize("sections", [None, (0,), (0, 2)])
def test_nothing_lies_below_the_first_section(knowledge, sections):
    given = {} if sections is None else {"sections" if knowledge is FSP else "layers": sections}
    with pytest.raises(fs.RecipeError, match="'freeze_below' needs section numbers above 0"):
        knowledge(**given, freeze_below=True)


def test_the_table_of_the_papers_claim_has_rows_for_both():
    jobs = load_recipe("fsp-modules").jobs
    frozen = {
        name
        for name, job in jobs.items()
        for term in job.stages[0].updates[0].transfer
        if getattr(term.knowledge, "freeze_below", False)
    }
    assert frozen == {"fsp_middle_alone", "fsp_last_alone", "hint_middle_alone", "hint_last_alone"}
    for name in frozen:
        beside = jobs[name.removesuffix("_alone")].stages[0].updates[0].transfer[0].knowledge
        its = jobs[name].stages[0].updates[0].transfer[0].knowledge
        assert {**vars(its), "freeze_below": False} == vars(beside)
