"""What a user gets wrong: one clear error on standard error, exit code 2, nothing left behind, nothing run."""

import re
from pathlib import Path

import pytest
import torch

from flowstill.cli import main
from support.hostile import Evil, everything

WRONG = {
    "command": (["trian"], "Did you mean 'train'"),
    "option": (["train", "digits", "--ot", "x"], "--out"),
    "no recipe": (["train"], "RECIPE"),
    "recipe": (["train", "digts"], "Did you mean 'digits'"),
    "recipe file": (["check", "nowhere.yaml"], r"no recipe file nowhere\.yaml"),
    "recipe without a text": (["train", "."], "is a folder"),
    "key": (["train", "digits", "--set", "student.sed=5"], "'seed'"),
    "key of the data": (["check", "digits", "--set", "data.bach=5"], "'batch'"),
    "value": (["train", "digits", "--set", "seed=abc"], "whole number.*'abc'"),
    "no value": (["train", "digits", "--set", "seed"], "seed"),
    "network": (["train", "digits", "--set", "student.network=resnet9"], "resnet8"),
    "network of a library": (["train", "digits", "--set", "student.network=timm:resnet81"], "resnet18"),
    "layer": (
        ["train", "digits", "--set", "student.flows=[{teacher: [conv1, layer1], student: [conv1, layr1]}]"],
        "student.*layer1",
    ),
    "knowledge": (["train", "digits", "--set", "student.stages.transfer.transfer=fps"], "'fsp'"),
    "data set": (["train", "digits", "--set", "data.name=cifar11"], "'cifar10'"),
    "data folder": (["train", "fsp-table3", "--data-root", "nowhere"], "'nowhere' does not exist"),
    "data folder, checked": (["check", "fsp-table3", "--data-root", "nowhere"], "'nowhere' does not exist"),
    "device": (["train", "digits", "--device", "cdua"], "'cuda'"),
    "devices": (["train", "digits", "--device", "cpu", "--devices", "0"], "--devices 0"),
    "scale": (["train", "digits", "--scale", "0"], "--scale.*above 0"),
    "scale below zero": (["train", "digits", "--scale", "-1"], "--scale.*above 0"),
    "scale that is no number": (["train", "digits", "--scale", "fast"], "--scale.*a number. Received: 'fast'"),
    "endless scale": (["train", "digits", "--scale", "inf"], "--scale.*above 0"),
    "seed": (["train", "digits", "--seed", "x"], "--seed.*a whole number. Received: 'x'"),
    "precision": (["train", "digits", "--precision", "bf17"], "'bf16'"),
    "weights": (["train", "digits", "--set", "teacher.weights=teacher.safetensors"], r"teacher\.safetensors"),
    "what to list": (["list", "net"], "'nets'"),
    "run folder": (["evaluate", "nowhere"], "does not exist"),
    "inspected network": (["inspect", "resnet9"], "resnet8"),
    "paired network": (["inspect", "resnet8", "--against", "timm:resnet81"], "resnet18"),
    "image size": (["inspect", "resnet8", "--image-size", "0x3"], "--image-size: expected 224.* Received: '0x3'"),
    "classes": (["inspect", "resnet8", "--classes", "0"], "num_classes.*Received: 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_gives_one_clear_error_and_leaves_nothing(here, capsys, case):
    arguments, expected = WRONG[case]
    code = main(arguments)
    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("error:") == 1
    assert re.search(expected, shown.err, re.DOTALL), shown.err
    assert "Traceback" not in shown.err
    assert "\x1b" not in shown.err
    assert everything(here) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there(here, capsys):
    assert main(["train", "digits", "--device", "cuda"]) == 2
    assert re.match("error: .*cuda", capsys.readouterr().err)
    assert everything(here) == []


@pytest.mark.parametrize("kind", ["pickle", "noise", "other network"])
def test_bad_weights_stop_before_anything_is_made(here, capsys, kind):
    if kind == "pickle":
        torch.save({"state_dict": Evil(here / "sprung")}, "teacher.pt")
    elif kind == "noise":
        Path("teacher.pt").write_bytes(b"\x00\xff" * 500)
    else:
        torch.save(torch.nn.Linear(2, 2).state_dict(), "teacher.pt")
    assert main(["train", "digits", "--set", "teacher.weights=teacher.pt"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert "teacher.pt" in shown
    assert "Traceback" not in shown
    assert everything(here) == ["teacher.pt"]
