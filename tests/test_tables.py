"""A recipe for each table of the papers, and for claims beside them: rows, updates, schedules, networks."""

from __future__ import annotations

import itertools
from importlib import resources
from typing import Any

import pytest

from flowstill.cli import main
from flowstill.data import data_facts
from flowstill.experiments.printed import printed_tables
from flowstill.experiments.rows import jobs_of, restricted, updates_of
from flowstill.knowledge.aggregation import Aggregation
from flowstill.knowledge.dense import Dense
from flowstill.knowledge.fsp import FSP
from flowstill.knowledge.hints import Hints
from flowstill.knowledge.kdgan import KDGAN
from flowstill.knowledge.logits import SoftLogits
from flowstill.knowledge.svd import SVD
from flowstill.recipes.check import check
from flowstill.recipes.load import load_recipe, recipe_names
from flowstill.recipes.methods import find_method
from flowstill.recipes.schema import (
    AdaptiveClip,
    AfterStage,
    Augment,
    Data,
    Linear,
    Milestones,
    Optimizer,
    Recipe,
    Stage,
)
from flowstill.transfer.procedures import adversarial, alternating, with_adversaries
from flowstill.transfer.recoding import Recoding

TABLES = printed_tables()
CLAIMS = ("fsp-modules", "kr-claims", "kr-figure5")
OURS = (*TABLES, *CLAIMS)
IMAGENET = "kr-table3"
QUICK = ["fsp-table3", "fsp-table5", "dense-cifar10-min", "kr-table1", "svd-table1", "kr-figure5"]  # one of each kind
CHECKED = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OURS]
NET_COLUMNS = ("net1", "net2", "net3")


def transferred(stage: Stage) -> list[Any]:
    return [term.knowledge for update in stage.updates for term in update.transfer]


def course(stage: Stage, player: str = "student") -> tuple[int, Any]:
    lr = stage.players[player].lr
    return stage.steps, lr.milestones if isinstance(lr, Milestones) else lr


def test_every_table_has_a_recipe_and_so_have_the_claims() -> None:
    assert set(OURS) <= set(recipe_names())


@pytest.mark.parametrize("name", OURS)
def test_a_recipe_is_short(name: str) -> None:
    text = resources.files("flowstill.recipes").joinpath("papers", f"{name}.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40


@pytest.mark.parametrize("name", CHECKED)
def test_a_recipe_passes_its_check(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", name]) == 0
    assert capsys.readouterr().out.startswith(f"{name}: ")


@pytest.mark.parametrize("name", TABLES)
def test_every_printed_row_is_there_with_as_many_networks(name: str) -> None:
    recipe, printed = load_recipe(name), TABLES[name]
    for row in printed.rows:
        variants = [f"{row}_{column}" for column in printed.columns]
        if set(NET_COLUMNS) <= set(printed.columns):
            jobs = jobs_of(recipe, row)
            assert jobs == (f"{row}_1", f"{row}_2", f"{row}_3")
            assert recipe.ensembles[row].jobs == jobs
        elif row in recipe.jobs:
            assert jobs_of(recipe, row) == (row,)
        else:
            assert set(variants) <= set(recipe.jobs)


@pytest.mark.parametrize("row", TABLES["svd-table4"].rows)
def test_a_row_of_variants_is_trained_whole(row: str) -> None:
    recipe = load_recipe("svd-table4")
    kept = restricted(recipe, [row]).jobs
    assert set(kept) == {"vgg_teacher", *(f"{row}_{column}" for column in TABLES["svd-table4"].columns)}


@pytest.mark.parametrize(
    ("name", "row"),
    [(name, row) for name, table in TABLES.items() if "total_iterations" in table.columns for row in table.rows],
)
def test_updates_are_as_many_as_the_papers_count(name: str, row: str) -> None:
    recipe, printed = load_recipe(name), TABLES[name]
    assert updates_of(recipe, jobs_of(recipe, row)) == printed.rows[row][printed.columns.index("total_iterations")]


def first_job(recipe: Recipe, name: str) -> str:
    """The job with whose fresh weights ``name`` begins."""
    start = recipe.jobs[name].start
    return first_job(recipe, start.job) if isinstance(start, AfterStage) else name


@pytest.mark.parametrize("name", OURS)
def test_no_student_begins_with_the_weights_its_teacher_began_with(name: str) -> None:
    recipe = load_recipe(name)
    for job_name, job in recipe.jobs.items():
        first = recipe.jobs[first_job(recipe, job_name)]
        if job.teacher and recipe.jobs[job.teacher].network == first.network:
            assert first.seed != recipe.jobs[job.teacher].seed, job_name


@pytest.mark.parametrize("name", [name for name, table in TABLES.items() if set(NET_COLUMNS) <= set(table.columns)])
def test_the_networks_of_a_row_differ_in_their_seeds_alone(name: str) -> None:
    recipe = load_recipe(name)
    for row in TABLES[name].rows:
        jobs = [recipe.jobs[job] for job in jobs_of(recipe, row)]
        assert len({job.seed for job in jobs}) == 3
        first = jobs[0]
        for job in jobs[1:]:
            assert (job.network, job.teacher, job.start, job.stages) == \
                (first.network, first.teacher, first.start, first.stages)  # fmt: skip


SHARED = {
    "fitnet_1_loss": "transfer",
    "fitnet_3_loss": "transfer",
    "fsp_shared_init": "transfer",
    "teacher_plus_21k": "task",
}


@pytest.mark.parametrize("row", TABLES["fsp-table1"].rows)
def test_table_1_shares_beginnings_where_the_paper_does(row: str) -> None:
    recipe = load_recipe("fsp-table1")
    starts = {job.start for name in jobs_of(recipe, row) for job in [recipe.jobs[name]]}
    if row not in SHARED:
        assert starts == {None}
        return
    (start,) = starts
    assert isinstance(start, AfterStage)
    assert start.stage == SHARED[row]
    if row == "teacher_plus_21k":
        assert start.job == "teacher_1"
    else:
        (stage,) = recipe.jobs[start.job].stages  # nothing but the transfer
        assert stage.name == start.stage
        assert recipe.jobs[start.job].teacher == "teacher_1"


FULL = (64_000, {0: 0.1, 32_000: 0.01, 48_000: 0.001})
SHORT = (21_000, {0: 0.1, 11_000: 0.01, 16_000: 0.001})
FLOW10 = (21_000, {0: 1e-3, 11_000: 1e-4, 16_000: 1e-5})
FLOW100 = (32_000, {0: 1e-3, 16_000: 1e-4, 24_000: 1e-5})
HINT = (35_000, {0: 1e-4, 25_000: 1e-5})
CUB = (30_000, {0: 0.1, 10_000: 0.01, 20_000: 0.001})
VECTORS = (200 * 390, {0: 1e-2, 50 * 390: 1e-3, 100 * 390: 1e-4, 150 * 390: 1e-5})


@pytest.mark.parametrize(
    ("name", "job", "expected"),
    [
        ("fsp-table1", "teacher_2", [FULL]),
        ("fsp-table1", "teacher_21k_2", [SHORT]),
        ("fsp-table1", "teacher_plus_21k_2", [SHORT]),
        ("fsp-table1", "stage1_fitnet_1_loss", [HINT]),
        ("fsp-table1", "fitnet_1_loss_3", [SHORT]),
        ("fsp-table1", "stage1_fitnet_3_loss", [HINT]),
        ("fsp-table1", "stage1_fsp", [FLOW10]),
        ("fsp-table1", "fsp_shared_init_3", [SHORT]),
        ("fsp-table1", "fsp_shuffled_1", [FLOW10, SHORT]),
        ("fsp-table2", "stage1_fitnet", [HINT]),
        ("fsp-table2", "stage1_fsp", [FLOW100]),
        ("fsp-table2", "fsp_shared_init_1", [SHORT]),
        ("fsp-table3", "fitnet", [HINT, FULL]),
        ("fsp-table3", "fsp", [FLOW10, FULL]),
        ("fsp-table4", "student_scratch", [FULL]),
        ("fsp-table4", "fitnet", [HINT, FULL]),
        ("fsp-table4", "fsp", [FLOW100, FULL]),
        ("fsp-table5", "teacher_finetuned", [CUB]),
        ("fsp-table5", "teacher_scratch", [CUB]),
        ("fsp-table5", "student_scratch", [CUB]),
        ("fsp-table5", "fitnet", [HINT, CUB]),
        ("fsp-table5", "fsp", [(21_000, {0: 0.1, 11_000: 0.01, 16_000: 0.001}), CUB]),
        ("dense-cifar10-min", "fsp", [FLOW10, FULL]),
        ("dense-cifar10-min", "dense_sequential", [FLOW10, FULL]),
        ("dense-cifar100-min", "hint", [HINT, FULL]),
        ("dense-cifar100-min", "dense_sequential", [FLOW100, FULL]),
        ("dense-cifar10-fast", "dense_sequential_2", [FLOW10, SHORT]),
        ("dense-cifar100-fast", "hint_3", [HINT, SHORT]),
        ("dense-cifar100-fast", "dense_sequential_3", [FLOW100, SHORT]),
        ("kr-table1", "teacher", [FULL]),
        ("kr-table2", "fsp", [FLOW100, FULL]),
        ("kr-table4", "nst", [FULL]),
        ("svd-table1", "mobilenet_teacher", [VECTORS]),
        ("svd-table1", "vgg_fsp", [VECTORS, VECTORS]),
        ("svd-table1", "resnext_svd", [VECTORS, VECTORS]),
        ("svd-table2", "vgg_svd", [VECTORS, VECTORS]),
        ("svd-table3", "fsp_two_stage", [VECTORS, VECTORS]),
        ("svd-table3", "svd_joint", [VECTORS]),
        ("svd-table4", "vgg_student_stride_16", [VECTORS]),
        ("fsp-modules", "fsp_middle", [FLOW10, SHORT]),
    ],
)
def test_schedules_are_the_papers(name: str, job: str, expected: list[tuple[int, dict[int, float]]]) -> None:
    assert [course(stage) for stage in load_recipe(name).jobs[job].stages] == expected


@pytest.mark.parametrize(("name", "job"), [("dense-cifar10-min", "hint"), ("dense-cifar10-fast", "hint_1")])
def test_hints_of_the_dense_paper_take_25k_and_drop_at_the_same_share(name: str, job: str) -> None:
    steps, milestones = course(load_recipe(name).jobs[job].stages[0])
    assert steps == 25_000
    assert milestones == Milestones(HINT[1]).scaled(steps / HINT[0]).milestones


CROPS, PLAIN = Augment(crop=4), Augment()
SVD_DATA = Data("cifar100", batch=128, augment=Augment(crop=4, flip=True, rotate=15),
                mean=(129.38, 124.11, 112.48), std=(68.21, 65.43, 70.46))  # fmt: skip
PHOTOGRAPHS = Augment(resized_crop=True, flip=True)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        *((f"fsp-table{n}", Data("cifar10", augment=CROPS)) for n in (1, 3)),
        *((f"fsp-table{n}", Data("cifar100", augment=PLAIN)) for n in (2, 4)),
        ("fsp-table5", Data("cub200", size=224, augment=PHOTOGRAPHS)),
        *((f"dense-cifar10-{kind}", Data("cifar10", augment=CROPS)) for kind in ("min", "fast")),
        *((f"dense-cifar100-{kind}", Data("cifar100", augment=PLAIN)) for kind in ("min", "fast")),
        ("kr-table1", Data("cifar10", augment=CROPS)),
        ("kr-table2", Data("cifar100", augment=PLAIN)),
        ("kr-table3", Data("imagenet", augment=PHOTOGRAPHS)),
        ("kr-table4", Data("tcifar100", augment=PLAIN)),
        *((f"svd-table{n}", SVD_DATA) for n in (1, 2, 3, 4)),
    ],
)
def test_images_are_the_papers(name: str, data: Data) -> None:
    assert load_recipe(name).data == data


NETWORKS = {
    "fsp-table1": {"resnet26"},
    "fsp-table2": {"resnet32x4"},
    "fsp-table4": {"resnet32x4", "resnet14x4"},
    "fsp-table5": {"resnet34-imagenet", "resnet20-imagenet"},
    "dense-cifar10-min": {"resnet26", "resnet8"},
    "dense-cifar100-min": {"resnet32x4", "resnet14x4"},
    "dense-cifar10-fast": {"resnet26"},
    "dense-cifar100-fast": {"resnet32x4"},
    "kr-table2": {"resnet32", "resnet14"},
    "kr-table4": {"resnet32", "resnet14"},
    "svd-table2": {"vgg-teacher", "vgg-student-strided"},
    "svd-table3": {"vgg-teacher", "vgg-student"},
    "svd-table4": {"vgg-teacher", "vgg-student", "vgg-student-strided"},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_the_papers(name: str) -> None:
    assert {job.network.name for job in load_recipe(name).jobs.values()} == NETWORKS[name]


SOFT = SoftLogits(temperature=3, divergence="cross_entropy", squared=False)


@pytest.mark.parametrize(
    ("name", "job"),
    [("fsp-table1", "fitnet_1_loss_2"), ("fsp-table1", "fitnet_3_loss_2"), ("fsp-table2", "fitnet_1"),
     ("fsp-table3", "fitnet"), ("fsp-table4", "fitnet"), ("fsp-table5", "fitnet_of_finetuned"),
     ("dense-cifar10-min", "hint"), ("dense-cifar100-fast", "hint_2"), ("kr-table1", "fitnet"), ("kr-table3", "fitnet")],
)  # fmt: skip
def test_second_stages_of_fitnets_weigh_soft_logits_from_4_to_1(name: str, job: str) -> None:
    stage = load_recipe(name).jobs[job].stages[-1]
    (update,) = stage.updates
    assert [term.knowledge.name for term in update.task] == ["labels"]
    assert [(term.knowledge, term.weight) for term in update.transfer] == [(SOFT, Linear((4, 1)))]


def test_table_5_reads_the_teacher_in_both_ways() -> None:
    jobs = load_recipe("fsp-table5").jobs
    assert {name: job.teacher for name, job in jobs.items() if job.teacher} == {
        "fitnet": "imagenet", "fsp": "imagenet",
        "fitnet_of_finetuned": "teacher_finetuned", "fsp_of_finetuned": "teacher_finetuned",
    }  # fmt: skip
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
    [(f"dense-{data}-{kind}", job) for data in ("cifar10", "cifar100")
     for kind, job in (("min", "dense_sequential"), ("fast", "dense_sequential_1"))],
)  # fmt: skip
def test_dense_rows_are_the_method(name: str, job: str) -> None:
    (first, _) = load_recipe(name).jobs[job].stages
    (method, _) = find_method("dense-sequential").stages(3)
    assert first.cycle == method.cycle
    assert transferred(first) == [Dense(step=step) for step in (1, 2, 3)]


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


def test_knowledge_representing_written_out_is_the_method() -> None:
    jobs = load_recipe("kr-claims").jobs
    assert jobs["kr"].stages == find_method("kr").stages(3)
    optimizers = {
        name: {p.optimizer.name for p in jobs[name].stages[0].players.values()} for name in ("kr_adam", "kr_rmsprop")
    }
    assert optimizers == {"kr_adam": {"adam"}, "kr_rmsprop": {"rmsprop"}}
    for name in optimizers:
        assert jobs[name].stages[0].cycle == jobs["kr"].stages[0].cycle
        assert jobs[name].network == jobs["kr"].network


def test_methods_written_out_for_imagenet_are_the_procedures() -> None:
    jobs = load_recipe(IMAGENET).jobs
    optimizer = Optimizer(weight_decay=1e-5)
    learning: dict[str, Any] = {"steps": 300_000, "lr": Linear((0.1, 0)), "optimizer": optimizer}
    represent: dict[str, Any] = {**learning, "match_lr": Linear((0.005, 0)), "aggregation": Aggregation(layers=4)}
    assert jobs["kdgan"].stages == adversarial(**learning)
    assert jobs["kr"].stages == alternating(**represent)
    assert jobs["kr_kdgan"].stages == (with_adversaries(*alternating(posterior=KDGAN(), **represent)),)


VGG = ["block1", "block2", "block3", "block4"]
MOBILENET = ["dsc64", "dsc128", "dsc256", "dsc512"]
RESNEXT = ["conv0", "block1", "block2", "block3"]
TAPPED = {
    "svd-table1": {"vgg_fsp": VGG, "vgg_svd": VGG, "mobilenet_fsp": MOBILENET, "mobilenet_svd": MOBILENET,
                   "resnext_fsp": RESNEXT, "resnext_svd": RESNEXT},
    "svd-table2": {"vgg_svd": VGG},
    "svd-table3": dict.fromkeys(("fsp_two_stage", "fsp_joint", "svd_two_stage", "svd_joint"), VGG),
    "svd-table4": {f"vgg_student_{kind}_{rank}": VGG for kind in ("pool", "stride") for rank in (1, 2, 4, 8, 16)},
}  # fmt: skip


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
        "none": None, "l2": None, "l2_strong": None, "recoding": Recoding(),
        "recoding_from_weights": Recoding(initial="mean_abs_w"),
    }  # fmt: skip
    decays = {name: player.optimizer.weight_decay for name, player in players.items()}
    assert decays == {"none": 0, "l2": 1e-4, "l2_strong": 1e-3, "recoding": 0, "recoding_from_weights": 0}
    assert len({player.lr for player in players.values()}) == 1
