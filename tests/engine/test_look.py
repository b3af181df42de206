"""The check of a teacher before training: what it refuses and what it warns about."""

import copy
import json
import logging
import re

import pytest
import torch
from torch import nn

import flowstill as fs
from flowstill.cli.app import main
from flowstill.engine.doubts import class_order, clearly_better
from flowstill.engine.look import check_finite_outputs, meaning
from flowstill.errors import FlowstillError, NetworkError
from flowstill.nets import save_weights
from support.compared_runs import PLAIN
from support.trained_digits import digits, flat, trained

TINY = {"scale": 5e-5, **PLAIN}


def said(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.name == "flowstill")


@pytest.fixture(autouse=True)
def _warnings(caplog):
    caplog.set_level(logging.WARNING, "flowstill")


def test_a_good_teacher_gets_no_warning(tmp_path, caplog):
    run = fs.distill(trained(), flat(), "digits", out=tmp_path / "run", strict=True, **TINY)
    assert said(caplog) == ""
    assert run.summary.jobs["teacher"].accuracy > 90


@pytest.mark.parametrize("part", ["0.weight", "3.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, part, value):
    teacher = trained()
    teacher.get_parameter(part).data.view(-1)[5] = value
    with pytest.raises(NetworkError, match=rf"teacher.*1 of \d+ values of '{re.escape(part)}' are not finite"):
        fs.distill(teacher, flat(), "digits", out=tmp_path / "run", **TINY)
    assert not (tmp_path / "run").exists()


def test_buffers_and_students_are_checked_too(tmp_path):
    student = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 10))
    student[1].running_var[0] = float("inf")
    with pytest.raises(NetworkError, match=r"'1\.running_var'"):
        fs.distill(trained(), student, "digits", out=tmp_path / "run", **TINY)


def test_a_mask_may_be_infinite(tmp_path):
    student = flat()
    student.register_buffer("mask", torch.full((3, 3), -float("inf")).triu(1))
    run = fs.distill(trained(), student, "digits", out=tmp_path / "run", **TINY)
    assert not run.summary.failed
    student.mask[0, 0] = float("nan")
    with pytest.raises(NetworkError, match="'mask' are not finite"):
        fs.distill(trained(), student, "digits", out=tmp_path / "again", **TINY)


def test_outputs_that_are_not_finite_are_refused(tmp_path):
    class Divides(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = trained()

        def forward(self, x):
            return self.inner(x) / (x.flatten(1).std(1, keepdim=True) > 1e9)

    with pytest.raises(NetworkError, match=r"outputs for .* are not finite, though all weights are"):
        fs.distill(Divides(), flat(), "digits", out=tmp_path / "run", **TINY)


def test_ruled_out_classes_are_allowed():
    logits = torch.zeros(4, 3)
    logits[:, 1] = -float("inf")
    check_finite_outputs(logits, "it")
    with pytest.raises(NetworkError, match="for 1 of 4"):
        check_finite_outputs(torch.cat([logits[:3], torch.full((1, 3), -float("inf"))]), "it")


def test_the_logarithm_of_probabilities_teaches_as_logits_do(tmp_path, caplog):
    learned = {}
    for name, teacher in {"logits": trained(), "probabilities": nn.Sequential(trained(), nn.Softmax(1))}.items():
        student = flat()
        run = fs.distill(teacher, student, "digits", out=tmp_path / name, scale=0.001, **PLAIN)
        learned[name] = student[1].weight.detach()
    assert "returns probabilities, as from a softmax" in said(caplog)
    torch.testing.assert_close(learned["probabilities"], learned["logits"], rtol=1e-3, atol=1e-4)
    assert run.recipe["run"]["preprocessing"]["teacher"]["output"] == "probabilities"
    again = fs.evaluate(run)  # from its facts
    assert again["student"]["accuracy"] == run.summary.jobs["student"].accuracy
    losses = [fs.Run.open(tmp_path / name).summary.jobs["teacher"].loss for name in learned]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_log_probabilities_are_logits(tmp_path, caplog):
    fs.distill(nn.Sequential(trained(), nn.LogSoftmax(1)), flat(), "digits", out=tmp_path / "run", strict=True, **TINY)


def test_sigmoid_outputs_are_refused(tmp_path):
    with pytest.raises(NetworkError, match=r"as from a sigmoid\. Expected logits"):
        fs.distill(nn.Sequential(trained(), nn.Sigmoid()), flat(), "digits", out=tmp_path / "run", **TINY)


def test_the_meaning_of_outputs():
    torch.manual_seed(0)
    logits = torch.randn(64, 5)
    assert meaning(logits, "") == meaning(logits.log_softmax(1), "") == "logits"
    assert meaning(logits.softmax(1), "") == meaning(logits.softmax(1).bfloat16().float(), "") == "probabilities"
    assert meaning(logits.abs(), "") == "logits"


def test_a_different_order_of_classes_is_detected(tmp_path, caplog):
    teacher = trained()
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]  # output k is class order[k]
    for tensor in (teacher[3].weight, teacher[3].bias):
        tensor.data = tensor.data[order].clone()
    run = fs.distill(teacher, flat(), "digits", out=tmp_path / "run", **TINY)
    fix = f"data.classes=[{', '.join(map(str, order))}]"
    assert fix in said(caplog)
    assert run.summary.jobs["teacher"].accuracy < 50
    mended = fs.distill(teacher, flat(), "digits", out=tmp_path / "mended", set=fix, strict=True, **TINY)
    assert mended.summary.jobs["teacher"].accuracy > 90


@pytest.mark.parametrize(("mean", "std"), [(0.0, 255.0), (0.0, 1.0), (127.5, 127.5)])
def test_a_different_normalisation_is_detected_with_its_fix(tmp_path, caplog, mean, std):
    """The suggested change restores the teacher's accuracy."""
    teacher = trained(mean, std)
    fs.distill(teacher, flat(), "digits", out=tmp_path / "run", **TINY)
    text = said(caplog)
    if not text:  # it does not mind
        assert fs.Run.open(tmp_path / "run").summary.jobs["teacher"].accuracy > 85
        return
    (fix,) = re.findall(r"set='(teacher\.network\.preprocessing=.*?)'", text)
    assert f"mean: [{mean:g}]" in fix
    mended = fs.distill(teacher, flat(), "digits", out=tmp_path / "mended", set=fix, strict=True, **TINY)
    network, data = trained(mean, std), digits()
    with torch.no_grad():
        right = [
            (network((x * 255 * data.std[0] + 255 * data.mean[0] - mean) / std).argmax(1) == y).float()
            for x, y in data.test_batches(batch=100)
        ]
    assert mended.summary.jobs["teacher"].accuracy == pytest.approx(100 * float(torch.cat(right).mean()), abs=0.3)


def test_another_size_is_named_where_it_costs_little_to_try(tmp_path, caplog):
    """A teacher of 32 x 32 pixels is above chance at 8 x 8, and its file records nothing."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 32, 7, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 10)]
    teacher = nn.Sequential(*layers)
    adam = torch.optim.Adam(teacher.parameters(), 3e-3)
    for batch in digits().train_batches("all", batch=128, steps=120):
        adam.zero_grad()
        large = nn.functional.interpolate(batch.images, (32, 32), mode="bilinear", antialias=True)
        nn.functional.cross_entropy(teacher(large), batch.labels).backward()
        adam.step()
    fs.distill(teacher.eval(), flat(), "digits", out=tmp_path / "run", **TINY)
    assert "images of 32 x 32 pixels" in said(caplog)
    assert "set='teacher.network.preprocessing={size: [32, 32]}'" in said(caplog)


def test_no_cause_is_named_that_leaves_a_teacher_at_chance(tmp_path, caplog):
    class Negated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = trained()

        def forward(self, x):
            return -self.inner(x)

    fs.distill(Negated(), flat(), "digits", out=tmp_path / "run", **TINY)
    assert "no more than by chance" in said(caplog)
    assert "it would be" not in said(caplog)


def test_an_untrained_teacher_is_detected(tmp_path, caplog):
    torch.manual_seed(2)
    with pytest.raises(FlowstillError, match="no more than by chance"):
        fs.distill(flat(), copy.deepcopy(flat()), "digits", out=tmp_path / "run", strict=True, **TINY)
    assert not (tmp_path / "run").exists()
    fs.distill(flat(), flat(), "digits", out=tmp_path / "run", **TINY)
    assert "Its weights are untrained" in said(caplog)


def test_a_teacher_far_below_what_its_file_records(tmp_path, caplog):
    teacher = fs.create("resnet8", 10, 1)
    save_weights(teacher, tmp_path / "t.safetensors", {"accuracy": "97.31", "classes": json.dumps(digits().classes)})
    options = {"teacher_weights": tmp_path / "t.safetensors", **TINY}
    fs.distill("resnet8", "resnet8", "digits", out=tmp_path / "run", **options)
    assert "its file records 97.31 %" in said(caplog)


def test_the_names_of_the_classes_in_a_file_are_compared(tmp_path, caplog):
    names = [str(9 - number) for number in range(10)]
    save_weights(fs.create("resnet8", 10, 1), tmp_path / "t.safetensors", {"classes": json.dumps(names)})
    fs.distill("resnet8", "resnet8", "digits", teacher_weights=tmp_path / "t.safetensors", out=tmp_path / "run", **TINY)
    assert f"data.classes=[{', '.join(names)}]" in said(caplog)


def test_strict_on_the_command_line(here, capsys):
    torch.manual_seed(0)
    save_weights(fs.create("resnet8", 10, 1), "t.safetensors")
    command = "distill --teacher resnet8 --teacher-weights t.safetensors --student resnet8 --data digits --scale 5e-5"
    assert main([*command.split(), "--device", "cpu", "--precision", "32", "--strict", "--out", "run"]) == 2
    assert "by chance" in capsys.readouterr().err
    assert not (here / "run").exists()


def test_clearly_better():
    right = torch.zeros(200, dtype=torch.bool)
    assert not clearly_better(right, right)
    assert clearly_better(torch.arange(200) < 40, right)
    assert not clearly_better(torch.arange(200) < 9, right)  # 4.5 points
    gained, lost = torch.arange(200) < 60, (torch.arange(200) >= 60) & (torch.arange(200) < 105)
    assert not clearly_better(gained, lost)  # 60 to 45: chance


def test_no_order_is_found_in_noise_nor_where_the_order_is_right():
    torch.manual_seed(0)
    labels = torch.arange(256) % 10
    assert class_order(torch.randn(256, 10), labels) is None
    assert class_order(torch.eye(10)[labels] + 0.6 * torch.randn(256, 10), labels) is None
    many = torch.arange(800) % 100
    assert class_order(torch.randn(800, 100), many) is None
    moved = torch.eye(100)[(many + 7) % 100]
    assert class_order(moved, many) == [(number - 7) % 100 for number in range(100)]


def test_what_a_file_needs_is_said_once(tmp_path, caplog):
    state = fs.create("resnet8", num_classes=10, in_channels=1).state_dict()
    torch.save({"model": {f"net.{key}": value for key, value in state.items()}, "ema": state}, tmp_path / "t.pth")
    fs.distill(
        "resnet8", "resnet8", "digits", out=tmp_path / "run", teacher_weights=tmp_path / "t.pth", scale=5e-5, **PLAIN
    )
    assert said(caplog).count("read from 'model'") == 1
    assert said(caplog).count("its names begin with 'net.'") == 1
