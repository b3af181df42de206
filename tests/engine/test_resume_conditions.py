"""Runs continued under other conditions: refused if the numbers would change, warned about if their last digits may."""

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

import flowstill as fs
from flowstill.engine import conditions
from flowstill.engine.conditions import files_of, kept_device, warn_of_changes
from flowstill.engine.precision import Precision
from flowstill.recipes.recipe import Job, Recipe, Weights
from flowstill.transfer.procedures import alone
from support.compared_runs import PLAIN, assert_same, stop_at
from support.engine_recipes import DATA, NET, recipe


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(KeyboardInterrupt):
        fs.train(recipe(steps=3), path, on_step=stop_at(("student", "transfer", 2)), **PLAIN)
    return path


@pytest.fixture
def run(interrupted, tmp_path):
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


def noted(path, **facts):
    """Change what the run recorded; None removes it."""
    data = yaml.safe_load((path / "recipe.yaml").read_text())
    data["run"] = {name: value for name, value in {**data["run"], **facts}.items() if value is not None}
    (path / "recipe.yaml").write_text(yaml.safe_dump(data))


def test_another_number_of_processes_is_refused(run):
    noted(run, devices=2)
    before = sorted((path, path.stat().st_mtime_ns) for path in run.iterdir() if path.name != ".lock")
    with pytest.raises(fs.RunError, match=r"started with devices=2\. Continue with devices=2"):
        fs.train(recipe(steps=3), run, resume=True, **PLAIN)
    assert sorted((path, path.stat().st_mtime_ns) for path in run.iterdir() if path.name != ".lock") == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_run_from_an_unavailable_device_is_refused(run):
    noted(run, device="cuda")
    with pytest.raises(fs.RunError, match=r"started on 'cuda'\. Continue with device='cuda'"):
        fs.train(recipe(steps=3), run, resume=True, **PLAIN)
    with pytest.raises(fs.RunError, match=r"started on 'cuda' and cannot continue on another device: .*not available"):
        fs.train(recipe(steps=3), run, resume=True, **{**PLAIN, "device": "auto"})


def test_auto_keeps_the_device(run):
    opened = fs.Run.open(run)
    assert kept_device(opened, "auto", "cuda", 1) == "cpu"
    assert kept_device(opened, "cpu", "cpu", 1) == "cpu"
    with pytest.raises(fs.RunError, match=r"started on 'cpu'"):
        kept_device(opened, "cuda", "cuda", 1)


def test_an_old_run_that_recorded_less_continues(run, tmp_path, caplog):
    noted(run, threads=None, files=None, versions=None, device=None, devices=None)
    resumed = fs.train(recipe(steps=3), run, resume=True, **PLAIN)
    assert_same(resumed, fs.train(recipe(steps=3), tmp_path / "whole", **PLAIN))
    assert not caplog.messages


def test_changed_versions_and_threads_are_logged(run, caplog):
    opened = fs.Run.open(run)
    warn_of_changes(opened, recipe(steps=3), "cpu")
    assert not caplog.messages
    versions = {**opened.fact(dict, "versions"), "torch": "2.0.0", "python": "3.11.0", "gone": "1"}
    noted(run, versions=versions, threads=torch.get_num_threads() + 3)
    warn_of_changes(fs.Run.open(run), recipe(steps=3), "cpu")
    (message,) = caplog.messages
    assert f"torch 2.0.0 (now {version('torch')})" in message
    assert f"{torch.get_num_threads() + 3} threads (now {torch.get_num_threads()}" in message
    assert "python" not in message
    assert "gone" not in message
    caplog.clear()
    noted(run, versions=opened.fact(dict, "versions"))
    warn_of_changes(fs.Run.open(run), recipe(steps=3), "cuda")  # where threads do not matter
    assert not caplog.messages


def test_a_changed_file_is_logged(tmp_path, caplog):
    for name, seed in (("one", 1), ("two", 2)):
        torch.manual_seed(seed)
        torch.save(fs.create("resnet8", num_classes=10, in_channels=1, width=0.5).state_dict(), tmp_path / f"{name}.pt")
    start = tmp_path / "start.pt"
    shutil.copy(tmp_path / "one.pt", start)
    jobs = {name: Job(NET, alone(2, 0.05), start=Weights(str(start))) for name in ("first", "second")}
    given = Recipe("test", DATA, jobs)
    with pytest.raises(KeyboardInterrupt):
        fs.train(given, tmp_path / "run", on_step=stop_at(("first", "task", 1)), **PLAIN)
    assert fs.Run.open(tmp_path / "run").fact(dict, "files") == files_of(given)
    shutil.copy(tmp_path / "two.pt", start)
    fs.train(given, tmp_path / "run", resume=True, **PLAIN)
    assert [message for message in caplog.messages if "start.pt' has changed since" in message]


def test_files_of_code_count(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    given = Recipe(
        "test", DATA, {"a": Job(f"{tmp_path / 'mine.py'}:make", alone(1, 0.1))}, uses=[str(tmp_path / "mine.py")]
    )
    one = files_of(given)
    assert list(one) == [str(tmp_path / "mine.py")]
    (tmp_path / "mine.py").write_text("x = 2\n")
    assert files_of(given) != one


def test_the_facts_of_a_new_run_are_enough_to_compare(run):
    facts = fs.Run.open(run).fact(dict)
    assert facts["threads"] == torch.get_num_threads()
    assert (facts["device"], facts["devices"], facts["files"]) == ("cpu", 1, {})
    assert facts["versions"]["torch"] == version("torch")
    assert conditions.kept_precision(fs.Run.open(run)) == Precision("32", facts["precision"]["layout"])
