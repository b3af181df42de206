"""Run folders: what is written can be read, a kill leaves them whole, and nothing in them is trusted."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from flowstill.errors import RunError
from flowstill.nets import create
from flowstill.runs import JobSummary, Run, RunWriter, Scores, Summary

RECIPE = {
    "name": "small",
    "jobs": {"student": {"network": {"name": "resnet8", "options": {}}, "stages": []}},
    "run": {"data": {"classes": 5, "channels": 1}},
}


def make_run(path: Path, recipe: dict = RECIPE) -> RunWriter:
    writer = RunWriter.create(path)
    writer.write_recipe(yaml.safe_dump(recipe))
    return writer


def test_a_folder_with_a_run_is_only_continued_on_request(tmp_path):
    make_run(tmp_path / "run")
    with pytest.raises(RunError, match="resume=True"):
        RunWriter.create(tmp_path / "run")
    RunWriter.create(tmp_path / "run", resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_anything_else_is_not_touched(tmp_path, resume):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"'notes\.txt'"):
        RunWriter.create(tmp_path, resume=resume)
    with pytest.raises(RunError, match="is a file"):
        RunWriter.create(tmp_path / "notes.txt", resume=resume)
    with pytest.raises(RunError, match="Cannot write"):
        RunWriter.create(tmp_path / "notes.txt" / "run", resume=resume)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt"]


@pytest.mark.parametrize("lacks", ["jobs", "ensembles"])
def test_a_run_is_finished_once_everything_in_its_recipe_is_measured(tmp_path, lacks):
    writer = make_run(tmp_path / "run", {**RECIPE, "ensembles": {"both": {"jobs": ["student"]}}})
    done = Summary(finished=True, jobs={"student": JobSummary()}, ensembles={"both": Scores()})
    writer.write_summary(done)
    assert Run.open(tmp_path / "run").finished
    writer.write_summary(replace(done, **{lacks: {}}))
    assert not Run.open(tmp_path / "run").finished


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_starts_in_an_empty_folder_and_leftovers_of_a_kill_are_removed(tmp_path, resume):
    (tmp_path / ".recipe.yaml.0a1b2c3d.partial").write_text("name: sm")
    if not resume:
        make_run(tmp_path)
    RunWriter.create(tmp_path, resume=True).clear_leftovers()
    assert not list(tmp_path.glob(".*"))


def test_an_error_about_a_run_folder_names_what_is_missing_and_the_nearest(tmp_path):
    make_run(tmp_path / "digits")
    with pytest.raises(RunError, match=r"does not exist.*Did you mean '.*digits'"):
        Run.open(tmp_path / "digit")
    with pytest.raises(RunError, match=r"no recipe\.yaml.*contains the runs '.*digits'"):
        Run.open(tmp_path)
    with pytest.raises(RunError, match="a file, not a folder"):
        Run.open(tmp_path / "digits" / "recipe.yaml")
    with pytest.raises(RunError, match="flowstill train"):
        Run.open(tmp_path / "far" / "away")


def test_a_run_before_its_first_summary_is_unfinished(tmp_path):
    writer = make_run(tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert (run.summary, run.finished, run.jobs, run.metrics()) == (Summary(), False, ("student",), [])
    assert writer.load_state() is None
    writer.write_summary(Summary(finished=True, jobs={"student": JobSummary()}))
    assert Run.open(tmp_path / "run").finished
    text = (tmp_path / "run" / "summary.json").read_text()
    assert list(json.loads(text)) == sorted(Summary())


@pytest.mark.parametrize(("name", "content"), [("summary.json", "{"), ("summary.json", "[]"), ("recipe.yaml", "a: [")])
def test_files_changed_by_hand_are_named(tmp_path, name, content):
    make_run(tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    run = Run.open(tmp_path / "run")
    with pytest.raises(RunError, match=name):
        _ = run.summary if name == "summary.json" else run.recipe


def test_the_state_round_trips(tmp_path):
    writer = make_run(tmp_path / "run")
    state = {"step": 3, "rng": [torch.get_rng_state()], "nested": {"w": torch.arange(6.0).view(2, 3)}, "name": "x"}
    writer.save_state(state)
    back = writer.load_state()
    assert back is not None
    assert (back["step"], back["name"]) == (3, "x")
    assert torch.equal(back["nested"]["w"], state["nested"]["w"])
    torch.set_rng_state(back["rng"][0])
    writer.drop_state()
    assert writer.load_state() is None


class Trap:
    """Unpickling this would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["torch", "pickle", "noise", "cut", "empty", "list"])
def test_a_broken_or_malicious_state_is_refused_and_runs_nothing(tmp_path, kind):
    writer, sprung = make_run(tmp_path / "run"), tmp_path / "sprung"
    path = tmp_path / "run" / "state.pt"
    writer.save_state({"w": torch.zeros(1000)})
    whole = path.read_bytes()
    if kind == "torch":
        torch.save({"step": 1, "w": Trap(sprung)}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    else:
        trap = pickle.dumps(Trap(sprung))
        path.write_bytes(
            {"pickle": trap, "noise": b"\x00\xff" * 99, "cut": whole[: len(whole) // 2], "empty": b""}[kind]
        )
    with pytest.raises(RunError, match=r"Cannot resume from .*state\.pt"):
        writer.load_state()
    assert not sprung.exists()


def test_a_failed_save_keeps_the_last_state(tmp_path):
    writer = make_run(tmp_path / "run")
    writer.save_state({"step": 1})
    with pytest.raises((pickle.PicklingError, AttributeError)):
        writer.save_state({"step": 2, "bad": lambda: None})
    assert writer.load_state() == {"step": 1}
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["recipe.yaml", "state.pt"]


def test_the_network_comes_back_trained_and_in_eval_mode(tmp_path):
    writer = make_run(tmp_path / "run")
    torch.manual_seed(0)
    network = create("resnet8", num_classes=5, in_channels=1)
    images = torch.rand(8, 1, 12, 12)
    network.train()(images)  # moves BatchNorm's statistics
    writer.save_network("student", network.state_dict())
    before = torch.get_rng_state()
    back = Run.open(tmp_path / "run").student
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in back.modules())
    with torch.no_grad():
        torch.testing.assert_close(back(images), network.eval()(images), rtol=0, atol=0)


def test_the_same_weights_are_the_same_bytes(tmp_path):
    state = create("resnet8", num_classes=5).state_dict()
    files = []
    for name in ("one", "two"):
        make_run(tmp_path / name).save_network("student", dict(reversed(state.items())) if name == "two" else state)
        files.append((tmp_path / name / "student.safetensors").read_bytes())
        time.sleep(0.01)
    assert files[0] == files[1]


def test_a_missing_network_is_named(tmp_path):
    make_run(tmp_path / "run")
    run = Run.open(tmp_path / "run")
    with pytest.raises(RunError, match="Did you mean 'student'"):
        run.network("studnet")
    with pytest.raises(RunError, match=r"no network yet.*resume=True"):
        run.network("student")


def test_a_network_from_a_python_file_needs_trust(tmp_path):
    marker, code = tmp_path / "ran", tmp_path / "mine.py"
    code.write_text(f"""
from pathlib import Path
from torch import nn
Path({str(marker)!r}).touch()
def make(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 4, num_classes))
""")
    recipe = {**RECIPE, "jobs": {"student": {"network": {"name": f"{code}:make", "options": {}}}}}
    writer = make_run(tmp_path / "run", recipe)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5))
    writer.save_network("student", network.state_dict())
    run = Run.open(tmp_path / "run")
    with pytest.raises(RunError, match="trust_code=True"):
        run.network()
    assert not marker.exists()
    images = torch.rand(2, 1, 2, 2)
    assert torch.equal(run.network(trust_code=True)(images), network(images))


def test_a_killed_writer_leaves_a_readable_folder(tmp_path):
    script = """
import sys, torch
from flowstill.runs import RunWriter, Summary
writer = RunWriter.create(sys.argv[1])
writer.write_recipe("name: killed\\njobs: {student: {network: {name: resnet8, options: {}}}}\\n")
for step in range(1, 10**9):
    writer.metrics.log("student", "task", step, {"lr": step})
    writer.save_state({"step": step, "metrics": writer.metrics.position(), "w": torch.full((20000,), float(step))})
    writer.write_summary(Summary(seed=step, command="x" * 5000))
"""
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)])
    for _ in range(600):
        if (folder / "summary.json").exists() and process.poll() is None:
            break
        time.sleep(0.1)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = Run.open(folder)
    writer = RunWriter.create(folder, resume=True)
    state = writer.load_state()
    assert state is not None
    assert torch.equal(state["w"], torch.full((20000,), float(state["step"])))
    assert run.summary.seed in (state["step"], state["step"] - 1)
    assert [row.step for row in run.metrics()][: state["step"]] == list(range(1, state["step"] + 1))
    writer.metrics.truncate(state["metrics"])
    assert [row.step for row in run.metrics()] == list(range(1, state["step"] + 1))
