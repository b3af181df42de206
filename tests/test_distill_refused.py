"""What `distill` refuses before anything is created, and a teacher for other classes, which it accepts."""

import pytest
import torch

import flowstill as fs
from flowstill.cli import main
from flowstill.errors import FlowstillError, NetworkError, RecipeError
from flowstill.nets import save_weights
from flowstill.recipes.distillation import distillation
from flowstill.reports.results import verdict
from support.compared_runs import PLAIN
from support.distilling import DATA, SHORT, network, taught

COMMAND = ["distill", "--teacher", "resnet8", "--student", "resnet8", "--data", "digits"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return taught(tmp_path_factory.mktemp("teacher"))


def test_an_unknown_method_is_refused_with_the_nearest(capsys, tmp_path, teacher):
    more = ["--teacher-weights", str(teacher), "--method", "fps", "--out", str(tmp_path / "run")]
    assert main([*COMMAND, *more]) == 2
    assert "Unknown method 'fps'. Did you mean 'fsp'?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_teacher_without_trained_weights_is_refused(tmp_path, capsys):
    assert main([*COMMAND, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "teacher" in error
    assert "--teacher-weights" in error
    assert not (tmp_path / "run").exists()


def frozen():
    return network().requires_grad_(False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"student": frozen}, "player 'student' moves student, adapters, but all their parameters are frozen"),
        ({"student": 5}, "Expected a network or its name .* as the student. Received: 5"),
        ({"teacher": "."}, "The teacher '.' is a file or folder, not a network's name.*teacher_weights='FILE'"),
        ({"method": []}, "method is an empty list of stages"),
        ({"method": ""}, "Unknown method ''. See"),
        ({"set": "data.batch=x"}, "data.batch: expected a whole number, got 'x'"),
        ({"set": ["teacher.about=x"], "teacher_weights": None}, "'resnet8' has no trained weights.*teacher_weights="),
        ({"labels": 3}, "'labels' is 3, but 'digits' has 10 classes"),
    ],
)
def test_bad_input_is_named_before_anything_is_created(tmp_path, teacher, arguments, said):
    given = {"teacher": "resnet8", "student": "resnet8", "data": DATA, "teacher_weights": teacher, **arguments}
    given["student"] = given["student"]() if given["student"] is frozen else given["student"]
    with pytest.raises(FlowstillError, match=said):
        fs.distill(**given, out=tmp_path / "run", **PLAIN)
    assert not (tmp_path / "run").exists()


def test_weights_beside_a_teacher_that_is_an_object_are_refused(teacher):
    with pytest.raises(RecipeError, match="given as an object has its own"):
        distillation(network(), "resnet8", DATA, "kd", teacher_weights=teacher)


def test_one_object_cannot_be_teacher_and_student(teacher):
    both = network()
    with pytest.raises(RecipeError, match=r"the same object\. Give copy\.deepcopy"):
        distillation(both, both, DATA, "kd")


def test_a_student_for_other_classes_is_refused_before_anything_is_created(tmp_path, teacher):
    student = fs.create("resnet8", 7, 1)
    with pytest.raises(NetworkError, match=r"job 'student': ResNet gives .*7.*10 classes.*head of 10"):
        fs.distill(fs.create("resnet8", 10, 1, weights=teacher), student, DATA, "fsp", out=tmp_path / "run", **PLAIN)
    assert not (tmp_path / "run").exists()


def seven():
    torch.manual_seed(8)
    return fs.create("resnet8", 7, 1)


@pytest.mark.parametrize("method", ["kd", "kdgan", "fitnet"])
def test_predictions_of_other_classes_are_refused(tmp_path, method):
    weights = tmp_path / "seven.safetensors"
    save_weights(seven().state_dict(), weights)
    said = r"job 'student': stage '.*': (soft_logits|kdgan) reads the predictions of 'teacher', but .*7.*Fine-tune the teacher"
    with pytest.raises(RecipeError, match=said):
        fs.distill(seven(), network(), DATA, method, out=tmp_path / "run", **PLAIN)
    with pytest.raises(RecipeError, match=said):
        fs.distill("resnet8", "resnet8", DATA, method, teacher_weights=weights, out=tmp_path / "run", **PLAIN)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["fsp", "at"])
def test_a_teacher_of_other_classes_can_teach_anything_but_predictions(tmp_path, method):
    """It is not measured on classes that it does not know."""
    save_weights(seven().state_dict(), tmp_path / "seven.safetensors")
    by_name = {"teacher_weights": tmp_path / "seven.safetensors"}
    for number, (teacher, more) in enumerate(((seven(), {}), ("resnet8", by_name))):
        run = fs.distill(teacher, network(), DATA, method, out=tmp_path / str(number), scale=SHORT, **more, **PLAIN)
        assert "accuracy" not in run.summary["jobs"]["teacher"]
        assert "accuracy" in run.summary["jobs"]["student"]
        assert run.finished
        assert list(fs.evaluate(run, device="cpu")) == ["student"]
        (sentence,) = verdict(run)
        assert "the teacher has" not in sentence
