"""Recipe files: where they come from, their short forms, and all that is wrong with them at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flowstill.errors import RecipeError
from flowstill.recipes.load import load_recipe
from flowstill.recipes.recipe import Job, Net
from support.recipe_files import SHORT, load, problems


def test_top_level_shorthand_means_jobs(here: Path) -> None:
    long = """
name: short
data: {name: digits, batch: 32}
jobs:
  teacher:
    network: {name: resnet26}
    stages:
      - name: task
        steps: 100
        players: {student: {lr: {milestones: {0: 0.1, 50: 0.01}}}}
        cycle: [{player: student, task: [{knowledge: {name: labels}}]}]
  student:
    network: {name: resnet8}
    teacher: teacher
    stages:
      - {name: transfer, steps: 40, players: {student: {lr: {value: 0.001}}}, cycle: [[{transfer: [fsp]}]]}
      - {name: task, steps: 100, players: {student: {lr: {0: 0.1, 50: 0.01}}}, cycle: [{task: [labels]}]}
"""
    assert load(SHORT) == load(long)


def test_shorthand_works_together_with_jobs(here: Path) -> None:
    more = "jobs:\n  alone: {network: resnet8, stages: [{name: task, steps: 1, task: labels}]}\n  raw: resnet14\n"
    recipe = load(SHORT + more)
    assert set(recipe.jobs) == {"teacher", "student", "alone", "raw"}
    assert recipe.jobs["student"].teacher == "teacher"
    assert recipe.jobs["raw"] == Job(Net("resnet14"))


def test_a_student_may_name_another_teacher_or_none(here: Path) -> None:
    other = SHORT.replace("student: resnet8", "student: {network: resnet8, teacher: b}")
    assert load(other + "jobs: {b: {network: x, weights: f}}").jobs["student"].teacher == "b"
    alone = "name: r\ndata: {name: digits}\nstudent: resnet8\nstages: [{name: task, steps: 1, task: labels}]\n"
    assert load(alone).jobs["student"].teacher is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            SHORT + "jobs: {teacher: {network: x, weights: f}}\n",
            "r.yaml:3: teacher: job 'teacher' is also given under 'jobs'; give it once",
        ),
        (
            SHORT + "jobs: {student: resnet8}\n",
            "r.yaml:7: student: job 'student' is also given under 'jobs'; give it once",
        ),
        (
            SHORT.replace("student: resnet8\n", ""),
            "r.yaml:7: stages: 'stages' at the top level need a 'student' at the top level",
        ),
        (
            SHORT.replace("student: resnet8", "student: {network: resnet8, stages: []}"),
            "r.yaml:8: stages: the student's stages are also given under 'student'",
        ),
        (
            SHORT.replace("student: resnet8", "student: 8"),
            "r.yaml:7: jobs.student: expected a mapping with 'network', got 8",
        ),
        (SHORT[: SHORT.index("  - {name")], "r.yaml:8: jobs.student.stages: expected a list, got nothing"),
        (SHORT + "jobs: 3\n", "r.yaml:11: jobs: expected a mapping, got 3"),
    ],
)
def test_invalid_shorthand(here: Path, text: str, said: str) -> None:
    (line,) = problems(text)
    assert line.startswith(said)


def test_a_teacher_must_have_trained_weights(here: Path) -> None:
    text = SHORT.split("  network")[0].replace("teacher:", "teacher: resnet26") + SHORT[SHORT.index("student:") :]
    text = text.replace("  - *task\n", "")
    said = "r.yaml:3: jobs.teacher: a teacher needs 'weights' (a file), 'stages' that train it, or, if it is built trained, 'start: trained'"
    assert problems(text) == [said]
    assert load(text, set=["teacher.weights=t.safetensors"]).jobs["teacher"] == Job(
        Net("resnet26"), weights="t.safetensors"
    )
    assert load(text.replace("resnet26", "{network: resnet26, start: {weights: t.pt}}"))
    assert load(text.replace("resnet26", "{network: {name: 'timm:resnet18', options: {pretrained: true}}}"))
    named = text.replace("teacher: resnet26", "jobs: {t: {network: resnet26}}")
    named = named.replace("student: resnet8", "student: {network: resnet8, teacher: t}")
    assert problems(named) == [said.replace("jobs.teacher", "jobs.t")]


def test_all_problems_are_reported_with_their_lines(here: Path) -> None:
    text = """\
name: r
data: {name: digits, btach: 4, batch: x, augment: {crop: -1}}
teacher: {network: resnet26, weights: t.safetensors}
student: resnet8
stages:
  - &first
    name: a
    steps: many
    lr: fast
    task: labels
  - {<<: *first, name: b, stps: 4, optimizer: {name: sdg}, lr: {0: 0.1, 10: x}}
  - name: c
    steps: 5
    lr: {linear: [1]}
    task:
      - labels
      - {name: lables}
      - {name: labels, wieght: 3}
    transfer: {name: fsp, weight: much}
    rule: adaptive
  - {name: d, steps: 1, cycle: [{task: labels}], lr: 1}
jbs: 3
seed: true
"""
    schedule = "expected a number, milestones {0: 0.1, 100: 0.01}, {linear: [4, 1]} or {cosine: 0.1}"
    assert set(problems(text)) == {
        "r.yaml:2: data.btach: unknown key. Did you mean 'batch'?",
        "r.yaml:2: data.batch: expected a whole number, got 'x'",
        "r.yaml:2: data.augment.crop: expected at least 0, got -1",
        "r.yaml:8: jobs.student.stages[0].steps: expected a whole number, got 'many'",
        f"r.yaml:9: jobs.student.stages[0].lr: {schedule}, got 'fast'",
        "r.yaml:11: jobs.student.stages[1].steps: expected a whole number, got 'many' (written on line 8)",
        "r.yaml:11: jobs.student.stages[1].stps: unknown key. Did you mean 'steps'?",
        "r.yaml:11: jobs.student.stages[1].optimizer.name: expected 'sgd', 'adam', 'adamw' or 'rmsprop', got 'sdg'. "
        "Did you mean 'sgd'?",
        "r.yaml:11: jobs.student.stages[1].lr[10]: expected a number, got 'x'",
        "r.yaml:14: jobs.student.stages[2].lr.linear: expected 2 items, got [1]",
        "r.yaml:17: jobs.student.stages[2].task[1]: Unknown knowledge 'lables'. Did you mean 'labels'?",
        "r.yaml:18: jobs.student.stages[2].task[2].wieght: unknown key. Did you mean 'weight'?",
        f"r.yaml:19: jobs.student.stages[2].transfer.weight: {schedule}, got 'much'",
        "r.yaml:20: jobs.student.stages[2].rule: Unknown rule 'adaptive'. Did you mean 'adaptive_clip'?",
        "r.yaml:21: jobs.student.stages[3]: 'players' is missing",
        "r.yaml:21: jobs.student.stages[3].lr: a stage with 'players' or 'cycle' takes this key inside them",
        "r.yaml:22: jbs: unknown key. Did you mean 'jobs'?",
        "r.yaml:23: seed: expected a whole number, got 'true'",
    }
    lines = [int(line.split(":")[1]) for line in problems(text)]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("key", "near"), [("lrr", "lr"), ("taks", "task"), ("optimiser", "optimizer"), ("step", "steps")]
)
def test_an_unknown_key_of_a_stage_suggests_the_nearest_of_its_form(here: Path, key: str, near: str) -> None:
    text = SHORT.replace("steps: 40,", f"steps: 40, {key}: 1,")
    assert problems(text) == [f"r.yaml:9: jobs.student.stages[0].{key}: unknown key. Did you mean {near!r}?"]


@pytest.mark.parametrize(("key", "near"), [("techer", "teacher"), ("ensemble", "ensembles"), ("stage", "stages")])
def test_an_unknown_top_level_key_suggests_the_nearest(here: Path, key: str, near: str) -> None:
    assert problems(f"{SHORT}{key}: 1\n") == [f"r.yaml:11: {key}: unknown key. Did you mean {near!r}?"]


def test_a_wrong_reference_suggests_the_nearest_job(here: Path) -> None:
    (said,) = problems(SHORT.replace("student: resnet8", "student: {network: resnet8, teacher: tescher}"))
    assert said.startswith("r.yaml:")
    assert "'tescher'" in said
    assert "Did you mean 'teacher'?" in said


def test_facts_of_a_run_in_its_recipe_are_ignored(here: Path) -> None:
    assert load(SHORT + "run: {flowstill: 0.1.0, torch: {version: 2}}\n") == load(SHORT)


def test_missing_and_unreadable_files(here: Path) -> None:
    Path("mine.yaml").write_text(SHORT, encoding="utf-8")
    Path("latin.yaml").write_bytes(b"name: caf\xe9")
    Path("folder").mkdir()
    for name, said in {
        "digts": "There is no recipe 'digts'. Did you mean 'digits'? Or give the path of a YAML file.",
        "mien.yaml": "There is no recipe file mien.yaml. Did you mean 'mine.yaml'?",
        "digits.yaml": "There is no recipe file digits.yaml. Did you mean 'digits'?",
        "none/mine.yaml": "There is no recipe file none/mine.yaml.",
        "folder": f"folder is a folder. Give the path of a YAML file, such as folder{os.sep}recipe.yaml.",
        "latin.yaml": "latin.yaml cannot be read:",
        "x" * 5000: "There is no recipe",
        "": "is a folder",
    }.items():
        with pytest.raises(RecipeError) as caught:
            load_recipe(name)
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "r.yaml: expected a mapping with keys such as 'name', 'data' and 'jobs', got an empty file"),
        ("- 1", "r.yaml: expected a mapping"),
        ("just text", "r.yaml: expected a mapping"),
        ("a: [", "r.yaml:1: invalid YAML"),
    ],
)
def test_files_that_are_not_recipes(here: Path, text: str, said: str) -> None:
    assert problems(text)[0].startswith(said)


def test_a_path_object_is_a_path(here: Path) -> None:
    Path("digits").write_text(SHORT, encoding="utf-8")
    assert load_recipe(Path("digits")).name == "short"
    assert load_recipe("digits").name == "digits"
