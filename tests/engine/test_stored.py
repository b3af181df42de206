"""Stored knowledge: the same as live, each image and view read once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import flowstill as fs
from flowstill.engine import stored as module
from flowstill.engine.teacher import Teacher
from flowstill.recipes.recipe import AdaptiveClip, Job, Net
from flowstill.transfer.procedures import cyclic, joint
from flowstill.transfer.stages import Live, Stored
from support.compared_runs import PLAIN, assert_near, assert_same, rows, stop_at
from support.stored_recipes import ALL_VIEWS, CROPS, FEW, NET, fsp_first, planned, recipe, told
from support.without_batchnorm import TWO_SECTIONS


@pytest.fixture
def kept(monkeypatch):
    """Leave the files of a finished run where they are."""
    monkeypatch.setattr(module.Stores, "remove", lambda self: None)


@pytest.fixture
def read(monkeypatch) -> list[tuple[str, int]]:
    """How many images each forward of a teacher reads; 1 is what finds out the shapes."""
    counts: list[int] = []
    plain = Teacher.read

    def spy(self, images, losses):
        reading = plain(self, images, losses)
        if reading is not None:
            counts.append(len(images))
        return reading

    monkeypatch.setattr(Teacher, "read", spy)
    return counts


@pytest.mark.parametrize(
    "stages",
    [
        fsp_first(12),
        joint(["fsp", "soft_logits"], steps=12, lr=0.01),
        joint("svd", steps=12, lr=0.001, rule=AdaptiveClip()),
        cyclic(["nst", "attention", "hints"], steps=12, lr=0.001),
    ],
    ids=["fsp", "joint", "svd", "cyclic"],
)
def test_stored_equals_live_with_random_crops(tmp_path, stages):
    """Of 47 images in 18 views many come again."""
    few = replace(CROPS, labels=None, hold_out=1250)
    runs = [fs.train(recipe(stages, how, few), tmp_path / how.name, **PLAIN) for how in (Live(), ALL_VIEWS)]
    assert_near(*runs, rtol=1e-6, atol=1e-6)
    for one, other in zip(*map(rows, runs), strict=True):
        assert one[:4] == other[:4]
        assert float(one[4]) == pytest.approx(float(other[4]), rel=1e-5, abs=1e-6)


def test_each_image_and_view_is_read_once_and_the_teacher_then_rests(tmp_path, read):
    """30 labelled images in 2 views: after enough epochs all 60 are there, and the teacher rests."""
    given = recipe(joint(["fsp", "soft_logits"], steps=40, lr=0.01), Stored(views=2), FEW)
    seen = []
    fs.train(given, tmp_path, on_step=lambda job, stage, step: seen.append((job, len(read))), **PLAIN)
    assert read[:2] == [1, 1]  # of each of the two terms, the shape
    assert sum(read[2:]) == 60
    at_step = [count for job, count in seen if job == "student"]
    assert at_step[20:] == [at_step[20]] * 20


def test_live_knowledge_reads_every_image_of_every_step(tmp_path, read):
    fs.train(recipe(joint("fsp", steps=5, lr=0.01), Live()), tmp_path, **PLAIN)
    assert read == [32] * 5


def test_jobs_and_stages_of_one_teacher_share_a_file(tmp_path, read, kept):
    one = joint("fsp", steps=20, lr=0.01)
    again = (*one, *(replace(stage, name="again") for stage in one))
    other = Job(NET, one, teacher="teacher", seed=3)
    run = fs.train(recipe(again, Stored(views=2), FEW, other=other), tmp_path, **PLAIN)
    assert sum(read) == 1 + 60
    assert len(list((run.path / "knowledge").glob("*.sums"))) == 1


def test_jobs_in_lockstep_read_together_and_equal_live(tmp_path, read):
    stages = fsp_first(8)
    jobs = {
        "b": Job(NET, stages, teacher="teacher"),
        "c": Job(Net("resnet14", {"width": 0.25}), stages, teacher="teacher"),
    }
    runs = {}
    for how in (Live(), Stored(views=2)):
        given = replace(recipe(stages, how, FEW, **jobs), together=(("student", "b", "c"),))
        runs[how.name] = fs.train(given, tmp_path / how.name, **PLAIN)
    assert_near(runs["stored"], runs["live"], rtol=1e-6, atol=1e-6)
    assert read[:9] == [32] * 8 + [1]
    assert sum(read[9:]) <= 8 * 32  # no image more for three students than for one


def test_stored_and_live_jobs_can_share_a_group(tmp_path):
    stages = fsp_first(4)
    both = recipe(stages, Live(), FEW, b=Job(NET, stages, teacher="teacher"))
    mixed = replace(both, jobs={**both.jobs, "b": replace(both.jobs["b"], stages=told(stages, Stored(views=2)))})
    runs = [
        fs.train(replace(given, together=(("student", "b"),)), tmp_path / str(number), **PLAIN)
        for number, given in enumerate((both, mixed))
    ]
    assert_near(*runs, rtol=1e-6, atol=1e-6)


class Killed(BaseException):
    """Ends a run at once, without another save."""


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("kill_after", [None, 3])
def test_interrupted_equals_uninterrupted_bit_for_bit(tmp_path, kill_after, dtype, read):
    """With and without a kill, some steps after the state was saved: those steps' cells are there already."""
    given = recipe(fsp_first(9), Stored(dtype=dtype, views=18))
    whole = fs.train(given, tmp_path / "whole", **PLAIN)
    before = list(read)
    read.clear()

    with pytest.raises(KeyboardInterrupt):
        fs.train(given, tmp_path / "cut", on_step=stop_at(("student", "transfer", 4)), **PLAIN)
    if kill_after:
        first = list(read)
        read.clear()

        def kill(job, stage, step):
            if step == 4 + kill_after:
                raise Killed

        with pytest.raises(Killed):
            fs.train(given, tmp_path / "cut", on_step=kill, resume=True, **PLAIN)
        filled = read[1:]
        assert len(filled) == kill_after
        read.clear()
        run = fs.train(given, tmp_path / "cut", resume=True, **PLAIN)
        assert first[1:] + filled + read[1:] == before[1:]  # nothing is read a second time
    else:
        run = fs.train(given, tmp_path / "cut", resume=True, **PLAIN)
    assert_same(run, whole)


def test_a_finished_run_keeps_no_knowledge(tmp_path):
    seen = []

    def look(job, stage, step):
        seen.append((tmp_path / "knowledge").is_dir())

    fs.train(recipe(fsp_first(2), ALL_VIEWS), tmp_path, on_step=look, **PLAIN)
    assert seen == [False, False, True, True, True, True]
    assert not (tmp_path / "knowledge").exists()


def test_half_precision_is_bounded_by_its_rounding(tmp_path, kept):
    """fp16 keeps 11 bits, and below 2^-14 steps of 2^-24: what is read back is within half a step."""
    for dtype in ("fp32", "fp16"):
        fs.train(recipe(joint("fsp", steps=5, lr=0.01), Stored(dtype=dtype, views=2), FEW), tmp_path / dtype, **PLAIN)
    files = {dtype: next((tmp_path / dtype / "knowledge").glob("*.sums")).with_suffix("") for dtype in ("fp32", "fp16")}
    exact, half = np.fromfile(files["fp32"], "<f4"), np.fromfile(files["fp16"], "<f2").astype(float)
    assert exact.any()
    assert (np.abs(half - exact) <= np.maximum(np.abs(exact) * 2.0**-11, 2.0**-25) * 1.0001).all()
    assert (half != exact).any()


@pytest.mark.parametrize("term", ["fsp", "svd", "soft_logits", "hints", "nst", "attention"])
def test_the_predicted_numbers_per_image_match_the_file(tmp_path, term, kept):
    """Counted without data against the file that a run leaves."""
    stages = joint(term, steps=2, lr=0.001)
    (file,) = planned(stages, Stored(views=2), FEW)["student"].stored["joint"]
    run = fs.train(recipe(stages, Stored(views=2), FEW), tmp_path, **PLAIN)
    (sums,) = (run.path / "knowledge").glob("*.sums")
    assert sums.with_suffix("").stat().st_size == 1297 * 2 * file.numbers * 4
    assert int((np.fromfile(sums, "<u4") != 0).sum()) <= 60
    taken = sum(path.stat().st_blocks * 512 for path in (run.path / "knowledge").iterdir())
    assert taken <= file.bytes + 2 * 4096


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """BatchNorm normalises by each process's own half, so a network without it is compared."""
    given = recipe(joint("fsp", steps=8, lr=0.05), Stored(views=2), FEW)
    given = replace(given, jobs={name: replace(job, network=TWO_SECTIONS) for name, job in given.jobs.items()})
    runs = [fs.train(given, tmp_path / str(devices), devices=devices, **PLAIN) for devices in (1, 2)]
    assert_near(*runs)
    assert not (runs[1].path / "knowledge").exists()
