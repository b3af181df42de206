"""What passes from teacher to student in the papers' recipes, and by which rules."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from flowstill.data import data_facts
from flowstill.knowledge.aggregation import Aggregation
from flowstill.knowledge.dense import Dense
from flowstill.knowledge.fsp import FSP
from flowstill.knowledge.hints import Hints
from flowstill.knowledge.kdgan import KDGAN, adversarial, with_adversaries
from flowstill.knowledge.logits import SoftLogits
from flowstill.knowledge.representing import alternating
from flowstill.knowledge.svd import SVD
from flowstill.recipes.check import check
from flowstill.recipes.load import load_recipe
from flowstill.recipes.recipe import AdaptiveClip, Linear, Optimizer, Stage
from flowstill.transfer.methods import find_method
from flowstill.transfer.recoding import Recoding

IMAGENET = "kr-table3"


def transferred(stage: Stage) -> list[Any]:
    return [term.knowledge for update in stage.updates for term in update.transfer]


SOFT = SoftLogits(temperature=3, divergence="cross_entropy", squared=False)


@pytest.mark.parametrize(
    ("name", "job"),
    [
        ("fsp-table1", "fitnet_1_loss_2"),
        ("fsp-table1", "fitnet_3_loss_2"),
        ("fsp-table2", "fitnet_1"),
        ("fsp-table3", "fitnet"),
        ("fsp-table4", "fitnet"),
        ("fsp-table5", "fitnet_of_finetuned"),
        ("dense-cifar10-min", "hint"),
        ("dense-cifar100-fast", "hint_2"),
        ("kr-table1", "fitnet"),
        ("kr-table3", "fitnet"),
    ],
)
def test_second_stages_of_fitnets_weight_soft_logits_from_4_to_1(name: str, job: str) -> None:
    stage = load_recipe(name).jobs[job].stages[-1]
    (update,) = stage.updates
    assert [term.knowledge.name for term in update.task] == ["labels"]
    assert [(term.knowledge, term.weight) for term in update.transfer] == [(SOFT, Linear((4, 1)))]


def test_table_5_reads_the_teacher_in_both_ways() -> None:
    jobs = load_recipe("fsp-table5").jobs
    assert {name: job.teacher for name, job in jobs.items() if job.teacher} == {
        "fitnet": "imagenet",
        "fsp": "imagenet",
        "fitnet_of_finetuned": "teacher_finetuned",
        "fsp_of_finetuned": "teacher_finetuned",
    }
    pretrained = {name for name, job in jobs.items() if job.network.options.get("pretrained")}
    assert pretrained == {"imagenet", "teacher_finetuned", "teacher_finetuned_slowly"}
    assert jobs["imagenet"].stages == ()
    for stage in jobs["fitnet"].stages:  # whose teacher knows none of these classes
        assert not {knowledge.name for knowledge in transferred(stage)} & {"soft_logits", "kdgan"}
    slow = jobs["teacher_finetuned_slowly"].stages[0].players["student"].lr
    assert slow.at(0, 1) == 0.001


def test_hints_and_shuffles_of_table_1() -> None:
    jobs = load_recipe("fsp-table1").jobs
    assert transferred(jobs["stage1_fitnet_1_loss"].stages[0]) == [Hints(layers="middle")]
    assert transferred(jobs["stage1_fitnet_3_loss"].stages[0]) == [Hints(layers="sections")]
    assert transferred(jobs["stage1_fsp"].stages[0]) == [FSP()]
    assert transferred(jobs["fsp_shuffled_3"].stages[0]) == [FSP(shuffle="realisable")]


@pytest.mark.parametrize(
    ("name", "job"),
    [
        (f"dense-{data}-{kind}", job)
        for data in ("cifar10", "cifar100")
        for kind, job in (("min", "dense_sequential"), ("fast", "dense_sequential_1"))
    ],
)
def test_dense_rows_match_the_method(name: str, job: str) -> None:
    (first, _) = load_recipe(name).jobs[job].stages
    (method, _) = find_method("dense-sequential").stages(3)
    assert first.cycle == method.cycle
    assert transferred(first) == [Dense(weighting="fsp", step=step) for step in (1, 2, 3)]


@pytest.mark.parametrize("name", ["kr-table1", "kr-table2", "kr-table4"])
def test_widths_have_the_printed_share_of_parameters(name: str) -> None:
    recipe = load_recipe(name)
    facts = data_facts(recipe.data)
    assert facts is not None
    plans = check(recipe, facts.shape, facts.classes)
    printed = 0.09 / 0.12 if name == "kr-table1" else 0.17 / 0.19  # million, Tables 1 and 2
    share = plans["kr"].counts.parameters / plans["student_scratch"].counts.parameters
    assert share == pytest.approx(printed, abs=0.02)
    if name == "kr-table1":
        millions = [round(plans[job].counts.parameters / 1e6, 2) for job in ("two_modules_scratch", "kr_two_modules")]
        assert millions == [0.12, 0.09]


def test_stages_written_out_for_knowledge_representing_match_the_method() -> None:
    jobs = load_recipe("kr-claims").jobs
    assert jobs["kr"].stages == find_method("kr").stages(3)
    optimizers = {
        name: {p.optimizer.name for p in jobs[name].stages[0].players.values()} for name in ("kr_adam", "kr_rmsprop")
    }
    assert optimizers == {"kr_adam": {"adam"}, "kr_rmsprop": {"rmsprop"}}
    for name in optimizers:
        assert jobs[name].stages[0].cycle == jobs["kr"].stages[0].cycle
        assert jobs[name].network == jobs["kr"].network


def test_stages_written_out_for_imagenet_match_the_procedures() -> None:
    jobs = load_recipe(IMAGENET).jobs
    optimizer = Optimizer(weight_decay=1e-5)
    learning: dict[str, Any] = {"steps": 300_000, "lr": Linear((0.1, 0), stairs=10), "optimizer": optimizer}
    match = Linear((0.005, 0), stairs=10)
    represent: dict[str, Any] = {**learning, "match_lr": match, "aggregation": Aggregation(layers=4)}
    assert jobs["kdgan"].stages == adversarial(**learning)
    assert jobs["kr"].stages == alternating(**represent)
    assert jobs["kr_kdgan"].stages == (with_adversaries(*alternating(posterior=KDGAN(), **represent)),)


VGG = ["block1", "block2", "block3", "block4"]
MOBILENET = ["dsc64", "dsc128", "dsc256", "dsc512"]
RESNEXT = ["conv0", "block1", "block2", "block3"]
TAPPED = {
    "svd-table1": {
        "vgg_fsp": VGG,
        "vgg_svd": VGG,
        "mobilenet_fsp": MOBILENET,
        "mobilenet_svd": MOBILENET,
        "resnext_fsp": RESNEXT,
        "resnext_svd": RESNEXT,
    },
    "svd-table2": {"vgg_svd": VGG},
    "svd-table3": dict.fromkeys(("fsp_two_stage", "fsp_joint", "svd_two_stage", "svd_joint"), VGG),
    "svd-table4": {f"vgg_student_{kind}_{rank}": VGG for kind in ("pool", "stride") for rank in (1, 2, 4, 8, 16)},
}


@pytest.mark.parametrize("name", TAPPED)
def test_taps_and_optimisers_are_those_of_the_svd_paper(name: str) -> None:
    recipe = load_recipe(name)
    plans = check(recipe, (3, 32, 32), 100)
    taught = {job: plan for job, plan in plans.items() if recipe.jobs[job].teacher and not job.endswith("_padded")}
    assert set(taught) == set(TAPPED[name])
    for job, plan in taught.items():
        expected = list(itertools.pairwise(TAPPED[name][job]))
        for side in ("teacher", "student"):
            sections = [getattr(pair, side) for pair in plan.pairs]
            assert [(str(section.entry), str(section.exit)) for section in sections] == expected
    stages = [stage for job in recipe.jobs.values() for stage in job.stages]
    expected_optimizer = Optimizer("sgd", momentum=0.9, nesterov=True, weight_decay=1e-4, decay="weights")
    assert {player.optimizer for stage in stages for player in stage.players.values()} == {expected_optimizer}


def test_tables_3_and_4_of_the_svd_paper_vary_one_thing() -> None:
    third, fourth = load_recipe("svd-table3").jobs, load_recipe("svd-table4").jobs
    for method, knowledge in (("fsp", FSP()), ("svd", SVD(rank=1, beta=8.0))):
        assert [transferred(stage) for stage in third[f"{method}_two_stage"].stages] == [[knowledge], []]
        (joint,) = third[f"{method}_joint"].stages
        assert transferred(joint) == [knowledge]
        assert joint.updates[0].rule == AdaptiveClip("adaptive_clip", "official", epoch_steps=390)
        assert [term.knowledge.name for term in joint.updates[0].task] == ["labels"]
    assert fourth["vgg_student_pool_1"].stages == third["svd_joint"].stages
    for row, rank in itertools.product(("pool", "stride"), (1, 2, 4, 8, 16)):
        (stage,) = fourth[f"vgg_student_{row}_{rank}"].stages
        assert transferred(stage) == [SVD(rank=rank)]
        assert stage.updates[0].rule == AdaptiveClip()
    assert fourth["vgg_student_stride_none"].network.name == fourth["vgg_student_stride_4"].network.name
    assert fourth["vgg_student_pool_none"].network.name == fourth["vgg_student_pool_4"].network.name


def test_modules_train_one_section_each() -> None:
    jobs = load_recipe("fsp-modules").jobs
    for number, which in enumerate(("first", "middle", "last")):
        assert transferred(jobs[f"fsp_{which}"].stages[0]) == [FSP(sections=(number,))]
        assert transferred(jobs[f"hint_{which}"].stages[0]) == [Hints(layers=(number,))]
    taught = [job for job in jobs.values() if job.teacher]
    assert {tuple(stage.steps for stage in job.stages) for job in taught} == {(21_000, 21_000)}
    assert sum(stage.steps for stage in jobs["alone_total"].stages) == 42_000


def test_figure_5_compares_penalties_over_the_first_20k_updates() -> None:
    stages = {name: stage for name, job in load_recipe("kr-figure5").jobs.items() for stage in job.stages}
    assert {stage.steps for stage in stages.values()} == {20_000}
    players = {name: stage.players["student"] for name, stage in stages.items()}
    assert {name: player.recode for name, player in players.items()} == {
        "none": None,
        "l2": None,
        "l1": None,
        "recoding": Recoding(),
        "recoding_from_weights": Recoding(initial="mean_abs_w"),
        "none_xavier": None,
        "recoding_xavier": Recoding(),
    }
    penalties = {name: (player.optimizer.weight_decay, player.optimizer.l1) for name, player in players.items()}
    assert {name: pair for name, pair in penalties.items() if any(pair)} == {"l2": (1e-4, 0), "l1": (0, 1e-4)}
    assert len({player.lr for player in players.values()}) == 1
