"""The recipes' schedules, images and networks are those that the papers print."""

from __future__ import annotations

from typing import Any

import pytest

from flowstill.recipes.load import load_recipe
from flowstill.recipes.recipe import Augment, Data, Milestones, Stage


def course(stage: Stage, player: str = "student") -> tuple[int, Any]:
    lr = stage.players[player].lr
    return stage.steps, lr.milestones if isinstance(lr, Milestones) else lr


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


@pytest.mark.parametrize("scale", [1, 0.01])
def test_imagenets_rate_steps_down_every_six_epochs(scale: float) -> None:
    """ "poly decreasing in each 6 epoch": 60 epochs, ten rates. 5 000 batches of 256 are an epoch of 1.28 million images."""
    for name, job in load_recipe("kr-table3", scale=scale).jobs.items():
        for stage in job.stages:
            epoch = round(5_000 * scale)
            assert stage.name == "transfer" or stage.steps == 60 * epoch
            if stage.name == "transfer":  # the hints have Yim et al.'s own
                continue
            for player, first in {"student": 0.005 if name.startswith("kr") else 0.1, "aggregate": 0.1}.items():
                if player not in stage.players:
                    continue
                lr = stage.players[player].lr
                rates = [lr.at(step, stage.steps) for step in range(0, stage.steps, epoch)]
                assert rates == pytest.approx([first * (1 - number / 10) for number in range(10) for _ in range(6)])
                assert lr.at(6 * epoch - 1, stage.steps) == first


CROPS, PLAIN = Augment(crop=4), Augment()
SVD_DATA = Data(
    "cifar100",
    batch=128,
    augment=Augment(crop=4, flip=True, rotate=15),
    mean=(129.38, 124.11, 112.48),
    std=(68.21, 65.43, 70.46),
)

PHOTOGRAPHS = Augment(resized_crop=True, flip=True)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        *((f"fsp-table{n}", Data("cifar10", augment=CROPS)) for n in (1, 3)),
        *((f"fsp-table{n}", Data("cifar100", augment=PLAIN)) for n in (2, 4)),
        ("fsp-table5", Data("cub200", size=224, test_crop=0.875, augment=PHOTOGRAPHS)),
        *((f"dense-cifar10-{kind}", Data("cifar10", augment=CROPS)) for kind in ("min", "fast")),
        *((f"dense-cifar100-{kind}", Data("cifar100", augment=PLAIN)) for kind in ("min", "fast")),
        ("kr-table1", Data("cifar10", augment=CROPS)),
        ("kr-table2", Data("cifar100", augment=PLAIN)),
        ("kr-table3", Data("imagenet", test_crop=0.875, augment=PHOTOGRAPHS)),
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
