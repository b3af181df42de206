"""Code from outside the package: all that can be registered, from a recipe's file and from an installed package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import flowstill as fs
from flowstill.cli import main
from flowstill.recipes.load import load_recipe
from flowstill.reports import write_report
from flowstill.reports.table import table_text
from flowstill.schema import code
from flowstill.schema.registry import Registry
from support.compared_runs import PLAIN, assert_same, stop_at
from support.outside_code import TRANSFER

MINE = (
    TRANSFER
    + """
import numpy as np
from torch import nn


@fs.register_procedure
def my_joint(transfer, *, steps: int, lr):
    '''Task and half of the transfer at once.'''
    return fs.joint(transfer, steps=steps, lr=lr, rule=Half())


@fs.register_method("my-method", transfers="mean squares", needs="sections")
def my_method():
    return my_joint(Norms(), steps=4, lr=0.01)


@fs.register_reader("my-arrays", about="digits.npz", recognises=lambda folder: (folder / "digits.npz").is_file())
def read(folder):
    arrays = np.load(folder / "digits.npz")
    pairs = list(zip(arrays["images"], arrays["labels"].tolist()))
    return pairs[:48], pairs[48:]


@fs.register_network("my-network", about="four convolutions")
def network(num_classes=10, in_channels=3, *, width=4):
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes),
    )


@fs.register_column("my-kilo", "thousands", width="narrow")
def kilo(row):
    return None if row.parameters is None else f"{row.parameters / 1000:.3f}k"
"""
)
RECIPE = """
uses: mine.py
name: outside
data: {name: images, batch: 16}
jobs:
  teacher: {network: {name: my-network, options: {width: 6}}, stages: [{name: task, steps: 4, task: labels, lr: 0.01}]}
  student: {network: my-network, teacher: teacher, stages: my-method}
  second:
    network: my-network
    teacher: teacher
    stages: {procedure: my_joint, transfer: my-norms, steps: 4, lr: {0: 0.01, 2: 0.001}}
"""
JOBS = ("teacher", "student", "second")
ON_CPU = ["--device", "cpu", "--trust-code"]


@pytest.fixture
def here(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a recipe, the file that it uses, and a folder of images that only this file can read."""
    (here / "mine.py").write_text(MINE)
    (here / "r.yaml").write_text(RECIPE)
    (here / "images").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=np.uint8)
    np.savez(here / "images" / "digits.npz", images=images, labels=np.arange(64) % 4)
    monkeypatch.setenv("COLUMNS", "200")
    return here


def forget() -> None:
    """As in a new process: no file has run, and nothing from one is registered."""
    for registry in Registry.every:
        for name in [name for name, origin in registry._origins.items() if origin in code._RUN]:
            del registry._entries[name], registry._origins[name]
    for name in code._RUN:
        del sys.modules[name]
    code._RUN.clear()


def test_everything_from_one_file_is_trained_evaluated_reloaded_and_reported(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "r.yaml", "--out", "run", "--precision", "32", *ON_CPU]) == 0
    shown = capsys.readouterr().out
    recipe = load_recipe("r.yaml", trust_code=True)
    updates = [recipe.jobs[job].stages[0].updates[0] for job in ("student", "second")]
    assert [(update.transfer[0].knowledge.name, update.rule.name) for update in updates] == [
        ("my-norms", "my-half")
    ] * 2
    run = fs.Run.open("run")
    sizes = {job: f"{run.summary.jobs[job].parameters / 1000:.3f}k" for job in JOBS}
    assert len(set(sizes.values())) == 2
    assert_shown(shown, sizes)
    assert "<th>thousands" in re.sub(r"<th[^>]*>", "<th>", Path("run/report.html").read_text())

    forget()
    assert main(["evaluate", "run", "--device", "cpu"]) == 2
    assert "--trust-code" in capsys.readouterr().err
    assert main(["evaluate", "run", *ON_CPU]) == 0
    shown = capsys.readouterr().out
    for job in JOBS:
        assert re.search(rf"^ *{job} +{run.summary.jobs[job].accuracy:.2f} ", shown, re.MULTILINE)

    forget()
    Path("run/report.html").unlink()
    assert main(["train", "r.yaml", "--out", "run", "--precision", "32", "--resume", *ON_CPU]) == 0
    assert_shown(capsys.readouterr().out, sizes)
    assert "thousands" in Path("run/report.html").read_text()

    forget()
    again = fs.Run.open("run")
    with pytest.raises(fs.FlowstillError, match="trust_code=True"):
        _ = again.student
    for job in JOBS:
        assert again.network(job, trust_code=True)(torch.zeros(1, 1, 8, 8)).shape == (1, 4)
    assert again.student(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    page = write_report(again).read_text()
    assert_shown(table_text(again), sizes)
    assert all(size in page for size in (*sizes.values(), "thousands", "my-norms", "my-half"))


def assert_shown(table: str, sizes: dict[str, str]) -> None:
    """The table has the column from outside, with each job's own size."""
    assert "thousands" in table
    for job, size in sizes.items():
        assert re.search(rf"^ *{job} .*{re.escape(size)}", table, re.MULTILINE), table


@pytest.mark.parametrize("job", JOBS)
def test_a_stopped_run_resumes_to_the_same_bytes(here: Path, job: str) -> None:
    whole = fs.train(load_recipe("r.yaml", trust_code=True), "whole", **PLAIN)
    (stage,) = load_recipe("r.yaml", trust_code=True).jobs[job].stages
    with pytest.raises(KeyboardInterrupt):
        fs.train(load_recipe("r.yaml", trust_code=True), "stopped", on_step=stop_at((job, stage.name, 2)), **PLAIN)
    assert not fs.Run.open("stopped").finished
    forget()
    assert main(["train", "r.yaml", "--out", "stopped", "--precision", "32", "--resume", *ON_CPU]) == 0
    assert_same(fs.Run.open("stopped"), whole)


def test_distill_takes_all_of_it_from_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "r.yaml", "--out", "run", "--precision", "32", *ON_CPU]) == 0
    forget()
    command = ["distill", "--uses", "mine.py", "--data", "images", "--method", "my-method", "--out", "distilled"]
    command += ["--teacher", "my-network", "--teacher-weights", "run/second.safetensors", "--student", "my-network"]
    capsys.readouterr()
    assert main([*command, "--precision", "32", "--device", "cpu"]) == 0
    assert "thousands" in capsys.readouterr().out
    assert fs.Run.open("distilled").finished


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment of a process in which a package of the group ``flowstill`` is installed."""
    (tmp_path / "site" / "outside-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "outside_package.py").write_text(MINE)
    about = tmp_path / "site" / "outside-1.0.dist-info"
    about.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    about.joinpath("entry_points.txt").write_text("[flowstill]\nmine = outside_package\n")
    paths = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"}


def flowstill(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "flowstill", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("knowledge", "my-norms +mean squares of the maps"),
        ("methods", "my-method +mean squares +sections"),
        ("procedures", "my_joint +Task and half of the transfer at once"),
        ("rules", "my-half +the task's gradient and half of the transfer's"),
        ("readers", "my-arrays +digits.npz"),
        ("nets", "my-network +four convolutions"),
    ],
)
def test_an_installed_package_is_listed_without_uses(installed: dict[str, str], kind: str, line: str) -> None:
    done = flowstill("list", kind, env=installed)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf"^ *{line}", done.stdout, re.MULTILINE), done.stdout


def test_an_installed_package_is_trained_with_and_evaluated_without_uses(here: Path, installed: dict[str, str]) -> None:
    (here / "mine.py").unlink()
    (here / "r.yaml").write_text(RECIPE.replace("uses: mine.py\n", ""))
    trained = flowstill("train", "r.yaml", "--out", "run", "--device", "cpu", "--precision", "32", env=installed)
    assert trained.returncode == 0, trained.stderr
    assert "thousands" in trained.stdout
    assert "thousands" in Path("run/report.html").read_text()
    evaluated = flowstill("evaluate", "run", "--device", "cpu", env=installed)
    assert evaluated.returncode == 0, evaluated.stderr
    assert re.search(r"^ *second +\d", evaluated.stdout, re.MULTILINE)


def test_an_installed_package_that_cannot_be_imported_is_left_out_with_a_warning(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    (tmp_path / "site" / "outside_package.py").write_text("1 / 0\n")
    done = flowstill("list", "knowledge", env=installed)
    assert done.returncode == 0
    assert "my-norms" not in done.stdout
    assert "outside" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert "Traceback" not in done.stderr
