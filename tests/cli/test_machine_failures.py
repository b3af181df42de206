"""Failures of the machine: one line, exit code 3, nothing half-written, and the run continues afterwards."""

import re
import sys
from pathlib import Path

import pytest

from flowstill.cli import main
from flowstill.cli.failures import failure_of_machine
from flowstill.engine import context
from flowstill.runs import Run
from support.damage import largest_file
from support.hostile import everything

TINY = """
name: tiny
data: {name: digits, batch: 16}
jobs:
  teacher:
    network: {name: resnet8, options: {width: 0.5}}
    stages: [{name: task, steps: 4, lr: 0.05, task: labels}]
"""
PLAIN = ["--device", "cpu", "--precision", "32"]


def error_of(capsys) -> str:
    shown = capsys.readouterr()
    assert shown.err.count("error:") == 1
    assert "Traceback" not in shown.err
    line = shown.err[shown.err.index("error:") :]
    assert line.count("\n") == 1
    return line


def test_a_run_stopped_by_a_file_size_limit_continues(here, capsys, monkeypatch):
    monkeypatch.setattr(context, "SAVE_EVERY", 0.0)
    Path("tiny.yaml").write_text(TINY)
    command = ["train", "tiny.yaml", "--out", "run", *PLAIN]
    monkeypatch.setattr(sys, "argv", ["flowstill", *command])
    with largest_file(50_000):  # enough for the recipe, too little for the state
        assert main(command) == 3
    line = error_of(capsys)
    assert re.search(r"state\.pt': File too large\. .*ulimit -f", line)
    assert f"Then continue with: flowstill {' '.join(command)} --resume\n" in line
    assert main([*command, "--resume"]) == 0
    assert Run.open("run").finished


def test_a_full_disk_at_the_start_leaves_nothing_behind(here, capsys):
    Path("tiny.yaml").write_text(TINY)
    with largest_file(200):
        assert main(["train", "tiny.yaml", "--out", "some/new/run", *PLAIN]) == 3
    assert "recipe.yaml'" in error_of(capsys)
    assert everything(here) == ["tiny.yaml"]
    Path("there").mkdir()
    with largest_file(200):
        assert main(["train", "tiny.yaml", "--out", "there", *PLAIN]) == 3
    assert everything(here) == ["there", "tiny.yaml"]


REFUSED = {
    "a file above": (["--out", "tiny.yaml/run"], 2, r"Cannot write to 'tiny\.yaml/run'.*--out"),
    "a file": (["--out", "tiny.yaml"], 2, "is a file"),
    "too long": (["--out", "x" * 300], 2, "File name too long.*--out"),
    "too long a part": (["--out", "new/" + "x" * 300], 2, "File name too long.*--out"),
    "a huge batch": (
        ["--out", "run", "--set", "data.batch=1000000000"],
        2,
        r"data\.batch is 1000000000: one batch.*memory",
    ),
    "a long job": (["--out", "run", "--set", f"jobs.{'j' * 101}.network=resnet8"], 2, "at most 100 characters"),
    "a name above": (["--set", "name=../../x"], 2, r"name '\.\./\.\./x' is not the name of a folder.*--out"),
    "an absolute name": (["--set", "name=/tmp/x"], 2, "not the name of a folder"),
    "a name of dots": (["--set", "name='..'"], 2, "not the name of a folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_unwritable_folder_is_refused_and_left_unchanged(here, capsys, case):
    options, code, said = REFUSED[case]
    Path("tiny.yaml").write_text(TINY)
    assert main(["train", "tiny.yaml", *options, *PLAIN]) == code
    assert re.search(said, error_of(capsys))
    assert everything(here) == ["tiny.yaml"]
    assert not Path("../../x").exists()


def test_file_names_that_are_not_utf_8(here, capsys):
    Path("tiny.yaml").write_text(TINY)
    assert main(["train", "tiny.yaml", "--out", "run-\udcff", *PLAIN]) == 2
    assert "is not UTF-8" in error_of(capsys)
    assert everything(here) == ["tiny.yaml"]
    assert main(["train", "tiny.yaml", "--out", "run", "--set", "teacher.weights=w-\udcff.pt", *PLAIN]) == 2
    assert "characters that YAML does not allow" in error_of(capsys)
    distil = ["--student", "resnet8", "--data", "digits", "--teacher", "resnet8", "--teacher-weights", "w-\udcff.pt"]
    assert main(["distill", *distil, "--out", "run", *PLAIN]) == 2
    assert "w-" in error_of(capsys)
    assert everything(here) == ["tiny.yaml"]


def test_one_class_is_refused(here, capsys):
    import numpy as np
    from PIL import Image

    for split in ("train", "test"):
        (here / "pictures" / split / "cat").mkdir(parents=True)
        for number in range(4):
            Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(
                here / "pictures" / split / "cat" / f"{number}.png"
            )
    Path("tiny.yaml").write_text(TINY.replace("name: digits", "name: pictures"))
    before = everything(here)
    assert main(["train", "tiny.yaml", "--out", "run", *PLAIN]) == 2
    assert "'pictures' has only one class" in error_of(capsys)
    assert everything(here) == before


def test_running_out_of_memory_is_recognised():
    import torch

    for fill in (lambda: bytearray(1 << 62), lambda: torch.empty(1 << 60)):
        with pytest.raises((MemoryError, RuntimeError)) as error:
            fill()
        assert failure_of_machine(error.value).startswith("Out of memory: ")
    assert failure_of_machine(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
