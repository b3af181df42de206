"""Bad input: one clear error on standard error, exit code 2, nothing left behind, nothing run."""

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
    "key unlike any": (["check", "digits", "--set", "data.mixup=1"], "unknown key. Expected one of name, root, batch"),
    "job's name": (
        ["check", "digits", "--set", "jobs={a/b: resnet8}"],
        "expected a name of letters, digits.*, got 'a/b'",
    ),
    "job's name that is a number": (
        ["check", "digits", "--set", "jobs={1: resnet8}"],
        "expected text as the name, got 1; put it",
    ),
    "job": (["check", "digits", "--set", "studnet.seed=5"], "'student'"),
    "stage": (["check", "digits", "--set", "student.stages.trasnfer.steps=5"], "'transfer'"),
    "teacher that is not there": (
        ["check", "digits", "--set", "student.teacher=techer"],
        "Unknown job 'techer'.*'teacher'",
    ),
    "empty setting": (["check", "digits", "--set", ""], "PATH=VALUE"),
    "YAML in a setting": (["check", "digits", "--set", "about=[1"], "invalid YAML"),
    "list where a number stands": (["check", "digits", "--set", "seed=[1]"], "seed: expected a whole number"),
    "rate beyond all numbers": (
        ["check", "digits", "--set", f"stages.task.lr={10**400}"],
        "lr: expected a number, got 10000",
    ),
    "rate that is no number": (["check", "digits", "--set", "stages.task.lr=.nan"], "expected a finite number"),
    "tensor of a scale": (["check", "digits", "--scale", "nan"], "--scale nan: expected a number above 0"),
    "recipe file with code": (["check", "code.yaml"], "no recipe file"),
    "used file": (["check", "digits", "--set", "uses=mine.py"], "No file '.*mine.py'"),
    "used module": (["check", "digits", "--set", "uses=no_such_module"], "No module 'no_such_module'"),
    "rule": (["check", "digits", "--set", "stages.task.rule=smu"], "'sum'"),
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
    "run that is a file": (["evaluate", __file__], "test_bad_input"),
    "method": (
        [
            "distill",
            "--teacher",
            "resnet8",
            "--student",
            "resnet8",
            "--data",
            "digits",
            "--teacher-weights",
            "x",
            "--method",
            "fps",
        ],
        "Unknown method 'fps'. Did you mean 'fsp'",
    ),
    "teacher without weights": (
        ["distill", "--teacher", "resnet8", "--student", "resnet8", "--data", "digits"],
        "no trained weights.*--teacher-weights FILE",
    ),
    "file as a network": (
        ["distill", "--teacher", "nets.py", "--student", "resnet8", "--data", "digits"],
        "write 'nets.py:FUNCTION'",
    ),
    "file of a network": (["inspect", "nets.py:make"], "No file 'nets.py'"),
    "table": (["reproduce", "fsp-tabel3"], "'fsp-table3'"),
    "rows": (["reproduce", "fsp-table3", "--rows", "tescher"], "no row 'tescher'"),
    "seeds": (["reproduce", "fsp-table3", "--seeds", "0"], "--seeds 0: expected at least 1"),
    "inspected network": (["inspect", "resnet9"], "resnet8"),
    "paired network": (["inspect", "resnet8", "--against", "timm:resnet81"], "resnet18"),
    "image size": (["inspect", "resnet8", "--image-size", "0x3"], "--image-size: expected 224.* Received: '0x3'"),
    "classes": (["inspect", "resnet8", "--classes", "0"], "num_classes.*Received: 0"),
}


LONG = "x" * 10_000
TOO_LONG = {
    "recipe": ["check", LONG],
    "recipe file": ["check", f"{LONG}.yaml"],
    "key": ["check", "digits", "--set", f"data.{LONG}=1"],
    "value": ["check", "digits", "--set", f"seed={LONG}"],
    "words": ["check", "digits", "--set", f"seed={'a b ' * 3000}"],
    "numbers": ["check", "digits", "--set", f"seed={list(range(3000))}"],
    "job": ["check", "digits", "--set", f"{LONG}.seed=1"],
    "job's name": ["check", "digits", "--set", f"jobs={{{LONG}/: resnet8}}"],
    "network": ["check", "digits", "--set", f"student.network={LONG}"],
    "library": ["inspect", f"{LONG}:x"],
    "network of a library": ["inspect", f"timm:{LONG}"],
    "file": ["inspect", f"{LONG}.py:make"],
    "data": ["check", "digits", "--set", f"data.name=./{LONG}"],
    "data root": ["check", "fsp-table3", "--data-root", LONG],
    "weights": ["check", "digits", "--set", f"teacher.weights={LONG}"],
    "run": ["evaluate", LONG],
    "size": ["inspect", "resnet8", "--image-size", LONG],
    "seed": ["check", "digits", "--seed", LONG],
    "device": ["train", "digits", "--device", LONG],
    "command": [LONG],
    "option": ["check", f"--{LONG}"],
    "used file": ["check", "digits", "--set", f"uses={LONG}.py"],
    "used module": ["check", "digits", "--set", f"uses={LONG}"],
    "run folder": ["train", "digits", "--device", "cpu", "--out", LONG],
    "method": [
        "distill",
        "--teacher",
        "resnet8",
        "--student",
        "resnet8",
        "--data",
        "digits",
        "--teacher-weights",
        "x",
        "--method",
        LONG,
    ],
    "what to list": ["list", LONG],
}


@pytest.mark.parametrize("case", TOO_LONG)
def test_endless_input_is_cut(here, capsys, case):
    assert main(TOO_LONG[case]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert len(shown.err) < 2500
    assert "Traceback" not in shown.err
    assert everything(here) == []


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
def test_an_unavailable_device(here, capsys):
    assert main(["train", "digits", "--device", "cuda"]) == 2
    assert re.match("error: .*cuda", capsys.readouterr().err)
    assert everything(here) == []


@pytest.mark.parametrize("kind", ["pickle", "noise", "other network"])
def test_bad_weights_stop_before_anything_is_created(here, capsys, kind):
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
