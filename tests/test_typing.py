"""The package's types are true to what it accepts: short forms pass mypy --strict in a user's file, and run."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

USER = """
import flowstill as fs

term = fs.Term("labels", 0.5)
falling = fs.Term("soft_logits", {"linear": [4, 1]})
update = fs.Update(task="labels")
both = fs.Update(task="labels", transfer=["fsp", fs.Attention(), term], rule="adaptive_clip")
player = fs.Player(lr=0.1)
job = fs.Job("resnet8")
stage = fs.Stage(name="task", steps=500, lr=0.1, task="labels")
steps = fs.Stage("transfer", 300, lr={0: 0.01, 150: 0.001}, transfer="fsp", optimizer=fs.Optimizer("adam"))
taught = fs.Job("resnet8", [steps, stage], teacher="teacher", labels=200)
whole = fs.Stage("both", 10, {"student": player}, [both, [update]])
recipe = fs.Recipe("mine", fs.Data("digits"), {"teacher": fs.Job("resnet14", [stage]), "student": taught})
weight: float = term.weight.at(0, 10)
name: str = recipe.jobs["student"].network.name
stages: tuple[fs.Stage, ...] = fs.joint("fsp", steps=10, lr=0.1, rule=fs.AdaptiveClip())
"""
WRONG = """
import flowstill as fs

fs.Term("labels", "half")
fs.Stage("task", "many", task="labels")
"""
ROOT = Path(__file__).parent.parent


def mypy(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
    cache = f"--cache-dir={ROOT / '.mypy_cache' / 'user'}"
    return subprocess.run([*command, cache, str(file)], capture_output=True, text=True, check=False, cwd=file.parent)


@pytest.fixture
def user(tmp_path: Path) -> Path:
    file = tmp_path / "user.py"
    file.write_text(USER)
    return file


def test_short_forms_work(user: Path) -> None:
    said = runpy.run_path(str(user))
    assert said["term"].weight.at(0, 1) == 0.5
    assert [stage.name for stage in said["taught"].stages] == ["transfer", "task"]
    assert said["stage"].players["student"].lr.at(0, 500) == 0.1


def test_short_forms_pass_a_strict_type_check(user: Path) -> None:
    result = mypy(user)
    assert result.returncode == 0, result.stdout


def test_a_type_check_finds_errors(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(WRONG)
    assert mypy(file).stdout.count("error:") == 2
