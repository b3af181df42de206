"""The size of stored knowledge, and when it is refused before anything runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

import flowstill as fs
from flowstill.cli import main
from flowstill.data import Augment, Data
from flowstill.engine.stored import refuse_if_full
from flowstill.features.taps import Reading
from flowstill.knowledge.kdgan import adversarial
from flowstill.knowledge.logits import SoftLogits
from flowstill.knowledge.representing import alternating
from flowstill.recipes.check import check
from flowstill.recipes.load import dump_recipe
from flowstill.recipes.recipe import Job, Net
from flowstill.recipes.storage import StoredFile, most_bytes
from flowstill.transfer.knowledge import Loss
from flowstill.transfer.procedures import alone, joint, two_stage
from flowstill.transfer.stages import Live, Stored
from support.stored_recipes import ALL_VIEWS, CROPS, FEW, NET, PLAIN, fsp_first, planned, recipe


@pytest.mark.parametrize(
    ("data", "knowledge", "message"),
    [
        (
            Data("cifar10", augment=Augment(crop=4)),
            Stored(),
            r"job 'student': stage 'transfer': the augmentation shows 81 views of an image, and 'views: 1' of its stored "
            r"knowledge allows 1\. Say 'views: 81' \(at most 45\.6 GB\), draw from a few fixed views "
            r"\('data\.augment\.views: 4' with 'views: 4' here\), or use 'knowledge: live'\.",
        ),
        (
            Data("cifar10", augment=Augment(crop=4, views=9)),
            Stored(views=8),
            r"shows 9 views.*'data\.augment\.views: 8'",
        ),
        (
            Data("cifar10", augment=Augment(rotate=3, views=3)),
            Stored(),
            r"shows 3 views of an image.*Say 'views: 3' \(at most 1\.69 GB\), or use 'knowledge: live'\.$",
        ),
        (
            Data("cifar10", augment=Augment(rotate=3)),
            Stored(views=500),
            r"stage 'transfer': the augmentation shows no image twice the same.*allows 500\. Draw from a few fixed views",
        ),
    ],
)
def test_too_many_views_are_refused(data, knowledge, message):
    stages = two_stage("fsp", transfer_steps=21_000, transfer_lr=0.001, task_steps=1, task_lr=0.1)
    given = recipe(stages, knowledge, data)
    given = replace(given, jobs={name: replace(job, network=Net("resnet8")) for name, job in given.jobs.items()})
    with pytest.raises(fs.RecipeError, match=message):
        check(given, (3, 32, 32), 10, images=50_000)


def test_too_many_views_are_refused_before_anything_is_created(tmp_path):
    with pytest.raises(fs.RecipeError, match="shows 18 views"):
        fs.train(recipe(fsp_first(), Stored(views=17)), tmp_path / "run", **PLAIN)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stages", "term"),
    [(alternating(steps=2, lr=0.01, match_lr=0.01), "aggregated"), (adversarial(steps=2, lr=0.01), "kdgan")],
)
def test_targets_that_depend_on_more_than_the_image_are_refused(stages, term):
    with pytest.raises(
        fs.RecipeError, match=rf"job 'student': stage '\w+': '{term}' cannot be stored.*Use 'knowledge: live'"
    ):
        planned(stages, ALL_VIEWS)


class Odd(Loss):
    """Gives what cannot be stored."""

    storable, teacher_logits, student_logits = True, True, True

    def target(self, teacher: Reading | None, batch=None):
        return {"logits": teacher.logits}


def test_a_target_that_is_not_a_tensor_is_refused(monkeypatch):
    monkeypatch.setattr(SoftLogits, "build", lambda *_: Odd())
    with pytest.raises(fs.RecipeError, match=r"stage 'joint', 'soft_logits': expected a float tensor.*got dict"):
        planned(joint("soft_logits", steps=1, lr=0.1), ALL_VIEWS)


def test_sizes_of_the_papers_networks():
    """2816 and 45056 numbers an image: 0.563 and 9.01 GB for 50 000 images in fp32."""
    for channels, numbers, size in ((1, 2816, 0.563e9), (4, 45_056, 9.01e9)):
        net = Net("resnet8", {"width": float(channels)})
        stages = two_stage("fsp", transfer_steps=32_000, transfer_lr=0.001, task_steps=1, task_lr=0.1)
        given = recipe(stages, Stored(), Data("cifar100"))
        given = replace(given, jobs={name: replace(job, network=net) for name, job in given.jobs.items()})
        (file,) = check(given, (3, 32, 32), 100, images=50_000)["student"].stored["transfer"]
        assert file.numbers == numbers
        assert file.bytes == pytest.approx(size, rel=1e-3)


def test_the_bound_follows_steps_labels_and_sharing():
    one = StoredFile("a", numbers=1000, dtype="fp32", shown=50, cells=100)
    assert one.bytes == 100 * 4004  # less than 50 * (4004 + 4096)
    assert replace(one, shown=10).bytes == 10 * 8100
    assert replace(one, shown=10, cells=None).bytes == 10 * 8100
    assert replace(one, dtype="fp16").bytes == 100 * 2004
    assert most_bytes([replace(one, shown=10), replace(one, shown=20)]) == 30 * 8100
    assert most_bytes([one, one, one]) == 100 * 4004
    assert most_bytes([replace(one, shown=10), replace(one, shown=10, key="b")]) == 2 * 10 * 8100
    many = joint("fsp", steps=1000, lr=0.1)
    (file,) = planned(many, ALL_VIEWS)["student"].stored["joint"]
    assert file.shown == 30 * 18  # only labelled images are shown
    (file,) = planned(many, ALL_VIEWS, replace(CROPS, unlabelled=8))["student"].stored["joint"]
    assert file.shown == 1000 * 40
    (file,) = planned(fsp_first(3), ALL_VIEWS)["student"].stored["transfer"]
    assert (file.shown, file.cells) == (3 * 32, 1297 * 18)
    assert planned(fsp_first(), ALL_VIEWS)["student"].stored["task"] == ()
    assert planned(fsp_first(), Live())["student"].stored["transfer"] == ()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_created(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=200_000))
    with pytest.raises(fs.RunError, match=r"may take \d+ kB, but .* has room for 200 kB\. Make room"):
        fs.train(recipe(fsp_first(), ALL_VIEWS), tmp_path / "run", **PLAIN)
    assert not (tmp_path / "run").exists()
    refuse_if_full([], tmp_path / "run")


def test_trained_jobs_need_no_more_room(tmp_path, monkeypatch):
    fs.train(recipe(fsp_first(), ALL_VIEWS), tmp_path / "run", **PLAIN)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    grown = recipe(fsp_first(), ALL_VIEWS, second=Job(NET, alone(2, 0.05)))
    assert fs.train(grown, tmp_path / "run", resume=True, **PLAIN).finished


def test_files_of_a_killed_run_count_as_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    file = StoredFile("a", numbers=1000, dtype="fp32", shown=1000, cells=100)
    with pytest.raises(fs.RunError, match=r"may take 400 kB, but .* has room for 0 kB"):
        refuse_if_full([file], tmp_path)
    (tmp_path / "knowledge").mkdir()
    (tmp_path / "knowledge" / "name").write_bytes(bytes(range(250)) * 2000)
    refuse_if_full([file], tmp_path)


def test_check_says_how_much_is_stored(tmp_path, capsys):
    (tmp_path / "own.yaml").write_text(dump_recipe(recipe(fsp_first(), Stored(dtype="fp16", views=2), FEW)))
    assert main(["check", str(tmp_path / "own.yaml")]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "stored" in line]
    numbers = planned(fsp_first(), Stored(views=2), FEW)["student"].stored["transfer"][0].numbers
    size = min(1297 * 2 * (2 * numbers + 4), 6 * 32 * (2 * numbers + 4 + 4096)) / 1e3
    assert said == [f"    stored: {numbers} numbers (fp16) per image, 2 views, at most {size:.3g} kB on the disk"]
