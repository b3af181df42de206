"""`distill` from the command line and from Python: what it trains, on which images."""

import inspect
from dataclasses import replace

import pytest
import torch

import flowstill as fs
from flowstill.cli import main
from flowstill.cli.distill import distill as cli_distill
from flowstill.data.spec import Augment, Data
from flowstill.engine.teacher import Teacher
from flowstill.recipes.distillation import distillation
from flowstill.recipes.methods import usual_data
from flowstill.transfer.methods import find_method
from flowstill.transfer.procedures import alone, two_stage
from support.compared_runs import PLAIN, weights
from support.distilling import DATA, SHORT, taught


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return taught(tmp_path_factory.mktemp("teacher"))


def test_the_usual_augmentation_is_used_unless_the_data_say_otherwise():
    assert usual_data("cifar10").augment == Augment(crop=4)
    own = distillation("resnet26", "resnet8", DATA, "kd", teacher_weights="none.pt")
    assert own.data == DATA
    named = distillation("resnet26", "resnet8", "digits", "kd", teacher_weights="none.pt")
    assert named.data.augment == Augment(shift=1)


def test_command_and_python_have_the_same_default_method():
    command, called = (inspect.signature(distill).parameters["method"].default for distill in (cli_distill, fs.distill))
    assert command == called == distillation("resnet26", "resnet8", DATA, teacher_weights="none.pt").name
    assert find_method(called).stages(3)


def test_the_command_trains_and_shows_the_student_beside_itself_alone(tmp_path, capsys, teacher):
    out = tmp_path / "run"
    command = [
        "distill",
        "--teacher",
        "resnet8",
        "--teacher-weights",
        str(teacher),
        "--student",
        "resnet8",
        "--data",
        "digits",
        "--method",
        "fsp",
        "--scale",
        str(SHORT),
        "--alone",
        "--labels",
        "100",
        "--set",
        "data.batch=32",
        "--out",
        str(out),
        "--device",
        "cpu",
        "--precision",
        "32",
    ]
    assert main(command) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    assert {"teacher", "student_alone", "student"} <= rows.keys()
    run = fs.Run.open(out)
    assert run.finished
    jobs = run.summary["jobs"]
    assert [jobs[name]["labels"] for name in ("student_alone", "student")] == [100, 100]
    assert jobs["student"]["steps"] == jobs["student_alone"]["steps"] == 5  # 4 + 1, at the smallest scale
    assert main([*command, "--resume"]) == 0
    assert "already finished" in capsys.readouterr().out


def test_a_list_of_stages_can_be_the_method(tmp_path, teacher):
    stages = two_stage(fs.SVD(rank=2), transfer_steps=2, transfer_lr=0.01, task_steps=2, task_lr=0.05)
    run = fs.distill("resnet8", "resnet8", DATA, stages, teacher_weights=teacher, out=tmp_path / "run", **PLAIN)
    assert fs.load_recipe(run.path / "recipe.yaml").jobs["student"].stages == stages
    assert run.summary["jobs"]["student"]["steps"] == 4


def test_one_stage_can_be_the_method(teacher):
    (stage,) = alone(3, 0.1)
    assert distillation("resnet8", "resnet8", DATA, stage, teacher_weights=teacher).jobs["student"].stages == (stage,)


def test_with_few_labels_the_transfer_still_uses_all_images(tmp_path, teacher, monkeypatch):
    """Also where task and transfer share an update."""
    seen = set()
    plain = Teacher.read

    def spy(self, images, losses):
        reading = plain(self, images, losses)
        if reading is not None:
            seen.update(image.numpy().tobytes() for image in images)
        return reading

    monkeypatch.setattr(Teacher, "read", spy)
    still = Data("digits", batch=32)
    few = {"teacher_weights": teacher, "labels": 20}
    fs.distill("resnet8", "resnet8", still, "kd", scale=5 * SHORT, out=tmp_path / "a", **few, **PLAIN)
    assert len(seen) > 300
    recipe = distillation("resnet8", "resnet8", replace(still, unlabelled=3), "kd", **few)
    assert recipe.data.unlabelled == 3  # who says how many gets so many


def test_a_fresh_head_is_initialised_before_its_stage(tmp_path, teacher):
    """The other layers continue from the stage before."""
    made = two_stage("fsp", transfer_steps=2, transfer_lr=0.01, task_steps=1, task_lr=0.0)
    kept = {}
    for fresh in (False, True):
        stages = (made[0], replace(made[1], fresh_head=fresh))
        options = {"teacher_weights": teacher, "out": tmp_path / str(fresh), **PLAIN}
        kept[fresh] = weights(fs.distill("resnet8", "resnet8", DATA, stages, **options))
    trained = {name for name in kept[True] if name.endswith(("weight", "bias"))}
    drawn = {name for name in trained if not torch.equal(kept[True][name], kept[False][name])}
    assert drawn == {"fc.weight", "fc.bias"}
