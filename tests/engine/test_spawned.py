"""What goes wrong in spawned processes is raised in the one that started them."""

import errno
import multiprocessing

import pytest
import torch.multiprocessing

import flowstill as fs
from flowstill.cli import main
from flowstill.engine.spawned import Failures
from flowstill.errors import command_line_words
from support.failing import full, gone, in_words, long, part, stopped, unpackable


def failure(fail):
    failures = Failures()
    with failures.outside():
        torch.multiprocessing.start_processes(part, (failures, fail), nprocs=2, start_method="spawn")


@pytest.mark.slow
def test_the_failure_itself_is_raised():
    with pytest.raises(OSError, match="No space left") as disk:
        failure(full)
    assert (disk.value.errno, disk.value.filename, disk.value.__notes__) == (errno.ENOSPC, "run/state.pt", ["a note"])
    with pytest.raises(KeyboardInterrupt):
        failure(stopped)
    with pytest.raises(RuntimeError, match="Unpackable: of its own kind"):
        failure(unpackable)
    with pytest.raises(RuntimeError, match="ValueError: xxx"):
        failure(long)
    with pytest.raises(ChildProcessError, match="ended by itself \\(exit code 7\\)"):
        failure(gone)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_errors_are_in_the_words_of_whoever_started_the_run():
    with pytest.raises(fs.RunError, match=r"^Give another out=\.$"):
        failure(in_words)
    with command_line_words(), pytest.raises(fs.RunError, match=r"^Give another --out\.$"):
        failure(in_words)


NET = """
import torch
from torch import nn
import flowstill as fs

class Failing(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

    def forward(self, images):
        if self.training and len(images) > 2:  # two are what is tried before training
            raise fs.NetworkError("It fails in training.")
        return self.layers(images)

def failing(num_classes=10):
    return Failing(num_classes)
"""
RECIPE = """
name: failing
data: {name: digits, batch: 16}
jobs: {net: {network: "net.py:failing", stages: [{name: task, steps: 2, lr: 0.05, task: labels}]}}
"""


@pytest.mark.slow
def test_a_command_with_two_processes_ends_in_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "failing.yaml").write_text(RECIPE)
    options = ["--device", "cpu", "--precision", "32", "--devices", "2", "--trust-code", "--out", "run"]
    assert main(["train", "failing.yaml", *options]) == 2
    said = capfd.readouterr().err
    assert said.rstrip().splitlines()[-1] == "error: It fails in training."
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
