"""Run folders edited by hand: one clear error that names the file, through every way in."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import flowstill as fs
from flowstill.papers.plan import part_of, plan_table
from flowstill.recipes.load import dump_recipe
from flowstill.reports import results_tables, write_report
from support.compared_runs import PLAIN, assert_same, stop_at
from support.engine_recipes import recipe


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fs.train(recipe(steps=2), tmp_path_factory.mktemp("runs") / "whole", **PLAIN).path


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


WAYS_IN = {
    "resume": lambda path: fs.train(recipe(steps=2), path, resume=True, **PLAIN),
    "evaluate": lambda path: fs.evaluate(path, device="cpu"),
    "network": lambda path: fs.Run.open(path).network("student"),
    "summary": lambda path: fs.Run.open(path).summary,
    "metrics": lambda path: fs.Run.open(path).metrics(),
    "finished": lambda path: fs.Run.open(path).finished,
    "table": lambda path: results_tables(fs.Run.open(path)),
    "report": write_report,
}
EVERY = set(WAYS_IN)


def changed(name, change):
    """Change the data of a YAML or JSON file in place; ``...`` removes a key."""

    def apply(path):
        file = path / name
        read, write = (json.loads, json.dumps) if name.endswith("json") else (yaml.safe_load, yaml.safe_dump)
        data = read(file.read_text())
        *keys, last = change[0]
        inner = data
        for key in keys:
            inner = inner[key]
        if change[1] is ...:
            del inner[last]
        else:
            inner[last] = change[1]
        file.write_text(write(data))

    return apply


def text(name, content):
    return lambda path: (path / name).write_bytes(content)


def folder(name):
    def apply(path):
        (path / name).unlink()
        (path / name).mkdir()

    return apply


def events_file(path):
    shutil.rmtree(path / "tensorboard", ignore_errors=True)
    (path / "tensorboard").write_text("x")


RECIPE, SUMMARY, METRICS, STUDENT = "recipe.yaml", "summary.json", "metrics.csv", "student.safetensors"
# Name: what is done, the file that every error names, and the ways in that must fail.
EDITS = {
    "no YAML": (text(RECIPE, b"a: ["), RECIPE, EVERY - {"summary", "metrics"}),
    "a list": (text(RECIPE, b"[1]"), RECIPE, EVERY - {"summary", "metrics"}),
    "not UTF-8": (text(RECIPE, b"\xff\xfe"), RECIPE, EVERY - {"summary", "metrics"}),
    "deep": (text(RECIPE, b"[" * 5000), RECIPE, EVERY - {"summary", "metrics"}),
    "no recipe": (lambda path: (path / RECIPE).unlink(), RECIPE, EVERY),
    "recipe is a folder": (folder(RECIPE), RECIPE, EVERY),
    "no jobs": (changed(RECIPE, (["jobs"], ...)), RECIPE, EVERY - {"summary", "metrics"}),
    "jobs are a list": (changed(RECIPE, (["jobs"], [1])), RECIPE, EVERY - {"summary", "metrics"}),
    "a job is a text": (changed(RECIPE, (["jobs", "student"], "x")), RECIPE, EVERY - {"summary", "metrics"}),
    "no network": (changed(RECIPE, (["jobs", "student", "network"], ...)), RECIPE, EVERY - {"summary", "metrics"}),
    "a stage without steps": (
        changed(RECIPE, (["jobs", "student", "stages", 0, "steps"], ...)),
        RECIPE,
        EVERY - {"summary", "metrics"},
    ),
    "a job renamed": (
        lambda path: (path / RECIPE).write_text((path / RECIPE).read_text().replace("student:", "pupil:", 1)),
        "student",
        {"resume", "network"},
    ),
    "no facts": (changed(RECIPE, (["run"], ...)), RECIPE, {"evaluate", "network"}),
    "facts are a text": (changed(RECIPE, (["run"], "x")), RECIPE, EVERY - {"summary", "metrics"}),
    "no classes": (changed(RECIPE, (["run", "data", "classes"], ...)), RECIPE, {"evaluate", "network"}),
    "classes as a text": (changed(RECIPE, (["run", "data", "classes"], "ten")), RECIPE, {"evaluate", "network"}),
    "other precision": (changed(RECIPE, (["run", "precision", "dtype"], "bf17")), RECIPE, {"evaluate"}),
    "no summary": (lambda path: (path / SUMMARY).unlink(), SUMMARY, {"resume", "report"}),
    "no JSON": (text(SUMMARY, b"{"), SUMMARY, EVERY - {"metrics"}),
    "summary is a list": (text(SUMMARY, b"[]"), SUMMARY, EVERY - {"metrics"}),
    "summary is not UTF-8": (text(SUMMARY, b"\xff"), SUMMARY, EVERY - {"metrics"}),
    "summary is a folder": (folder(SUMMARY), SUMMARY, EVERY - {"metrics"}),
    "an accuracy as a text": (
        changed(SUMMARY, (["jobs", "student", "accuracy"], "good")),
        SUMMARY,
        EVERY - {"metrics"},
    ),
    "metrics are garbage": (text(METRICS, b"\xff\x00\n\n"), METRICS, {"metrics", "report"}),
    "metrics of other columns": (text(METRICS, b"a,b\n1,2\n"), METRICS, {"metrics", "report"}),
    "metrics are a folder": (folder(METRICS), METRICS, {"resume", "metrics", "report"}),
    "a network is a folder": (folder(STUDENT), STUDENT, {"resume", "evaluate", "network", "report"}),
    "versions as a number": (changed(RECIPE, (["run", "versions"], 3)), RECIPE, EVERY - {"summary", "metrics"}),
    "files as a number": (changed(RECIPE, (["run", "files"], 3)), RECIPE, EVERY - {"summary", "metrics"}),
    "threads as a text": (changed(RECIPE, (["run", "threads"], "many")), RECIPE, EVERY - {"summary", "metrics"}),
    "a deep summary": (text(SUMMARY, b"[" * 100_000), SUMMARY, EVERY - {"metrics"}),
    "an accuracy of NaN": (
        changed(SUMMARY, (["jobs", "student", "accuracy"], float("nan"))),
        SUMMARY,
        EVERY - {"metrics"},
    ),
    "preprocessing is a folder": (folder("preprocessor_config.json"), "preprocessor_config.json", {"resume", "report"}),
    "events are a file": (events_file, "tensorboard", {"resume", "report"}),
    "no network file": (lambda path: (path / STUDENT).unlink(), STUDENT, {"resume", "network"}),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_edited_folder_gives_one_clear_error(run, case):
    edit, named, must_fail = EDITS[case]
    edit(run)
    said = {}
    for way in sorted(WAYS_IN):
        try:
            WAYS_IN[way](run)
        except fs.FlowstillError as error:
            said[way] = str(error)
    assert said.keys() >= must_fail
    for way, text in said.items():
        assert named in text, way
        assert len(text) < 1000, way
    assert not list(run.glob(".*.partial"))


def test_resuming_without_a_recipe_leaves_the_folder_alone(run):
    (run / RECIPE).unlink()
    before = sorted(run.rglob("*"))
    with pytest.raises(fs.RunError, match=r"recipe\.yaml' is missing"):
        fs.train(recipe(steps=2), run, resume=True, **PLAIN)
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("case", ["no YAML", "no jobs", "no facts", "no JSON", "a job is a text"])
def test_reproduce_names_the_run_folder_that_was_edited(run, tmp_path, case):
    (tmp_path / "own.yaml").write_text(dump_recipe(recipe(steps=2)))
    plan, out = plan_table(str(tmp_path / "own.yaml")), tmp_path / "table"
    out.mkdir()
    shutil.move(run, out / "seed-0-x")
    edit, named, _ = EDITS[case]
    edit(out / "seed-0-x")
    with pytest.raises(fs.FlowstillError, match=named):
        part_of(plan, 0, out, "auto", {})


def test_a_missing_summary_is_restored_from_the_state(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fs.train(recipe(steps=2), tmp_path / "run", on_step=stop_at(("student", "transfer", 1)), **PLAIN)
    (tmp_path / "run" / SUMMARY).write_text("{")
    with pytest.raises(fs.RunError, match=r"delete it and resume: state\.pt holds the same"):
        fs.train(recipe(steps=2), tmp_path / "run", resume=True, **PLAIN)
    (tmp_path / "run" / SUMMARY).unlink()
    run = fs.train(recipe(steps=2), tmp_path / "run", resume=True, **PLAIN)
    assert_same(run, fs.train(recipe(steps=2), tmp_path / "whole", **PLAIN))
