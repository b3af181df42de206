"""Several students of one teacher in one run: shared or separate first stages, shuffles, a continued teacher, ensembles."""

import pytest
import torch
from safetensors.torch import load_file

import flowstill as fs
from flowstill.data import open_data
from flowstill.data.spec import Augment, Data
from flowstill.knowledge.fsp import FSP
from flowstill.recipes.recipe import AfterStage, Ensemble, Job, Net, Recipe
from flowstill.transfer.procedures import alone, two_stage

NET = Net("resnet8", {"width": 0.5})
DATA = Data("digits", batch=32, augment=Augment(shift=1))
PLAIN = {"device": "cpu", "precision": "32", "progress": False}


def taught(seed, shuffle=None, steps=4):
    return Job(
        NET,
        two_stage(FSP(shuffle=shuffle), transfer_steps=steps, transfer_lr=0.01, task_steps=steps, task_lr=0.05),
        teacher="teacher",
        seed=seed,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Table 1 of Yim et al. (2017), small: its rows' kinds, two networks each."""
    first, *_ = taught(1).stages
    jobs = {
        "teacher": Job(NET, alone(8, 0.1), seed=9),
        "teacher_continued_1": Job(NET, alone(4, 0.05), start=AfterStage("teacher", "task"), seed=1),
        "teacher_continued_2": Job(NET, alone(4, 0.05), start=AfterStage("teacher", "task"), seed=2),
        "first": Job(NET, (first,), teacher="teacher"),
        "shared_1": Job(NET, alone(4, 0.05), start=AfterStage("first", "transfer"), seed=1),
        "shared_2": Job(NET, alone(4, 0.05), start=AfterStage("first", "transfer"), seed=2),
        "separate_1": taught(1, "realisable"),
        "separate_2": taught(2, "realisable"),
        "plain_1": taught(1),
    }
    ensembles = {
        "shared": Ensemble(("shared_1", "shared_2")),
        "separate": Ensemble(("separate_1", "separate_2"), mean="logits"),
        "teachers": Ensemble(("teacher_continued_1", "teacher_continued_2")),
    }
    return fs.train(Recipe("table", DATA, jobs, ensembles=ensembles), tmp_path_factory.mktemp("run") / "run", **PLAIN)


def weights(run, job):
    return load_file(run.path / f"{job}.safetensors")


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_shared_students_begin_alike_and_end_apart(run):
    start = weights(run, "first")  # after its only stage
    assert not list(run.path.glob("first@*"))  # not kept a second time
    assert not same(weights(run, "shared_1"), start)
    assert not same(weights(run, "shared_1"), weights(run, "shared_2"))


def test_a_continued_teacher_starts_where_the_teacher_ended(run):
    """Four updates move it less than another initialisation would."""
    assert not same(weights(run, "teacher_continued_1"), weights(run, "teacher_continued_2"))
    far = torch.dist(fs.create("resnet8", 10, 1, width=0.5).conv1.weight, weights(run, "teacher")["conv1.weight"])
    near = torch.dist(weights(run, "teacher_continued_1")["conv1.weight"], weights(run, "teacher")["conv1.weight"])
    assert near < far / 2


def test_separate_students_have_their_own_shuffles(run):
    losses = {}
    for row in run.metrics():
        if row.metric == "train/fsp":
            losses.setdefault(row.job, []).append(row.value)
    assert losses["separate_1"][0] != losses["plain_1"][0]  # one seed, one student, another target
    assert losses["separate_1"][0] != losses["separate_2"][0]
    assert not same(weights(run, "separate_1"), weights(run, "plain_1"))


@pytest.mark.parametrize("name", ["shared", "separate", "teachers"])
def test_ensembles_are_results_of_the_run(run, name):
    """Compared with the members' averaged outputs."""
    ensemble = run.recipe["ensembles"][name]
    data, right = open_data(DATA), 0
    networks = [run.network(job) for job in ensemble["jobs"]]
    for images, labels in data.test_batches(batch=100):
        with torch.no_grad():
            logits = torch.stack([network(images) for network in networks])
        outputs = logits.softmax(2) if ensemble["mean"] == "softmax" else logits
        right += int((outputs.mean(0).argmax(1) == labels).sum())
    assert run.summary["ensembles"][name]["accuracy"] == pytest.approx(100 * right / data.test_size)
