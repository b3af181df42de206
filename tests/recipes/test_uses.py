"""Code from outside the package: a knowledge, a method, a rule and a procedure in a user's file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import flowstill as fs
from flowstill.cli import main
from flowstill.errors import RecipeError, RunError
from flowstill.recipes.dump import dump_recipe
from flowstill.recipes.load import load_recipe
from flowstill.reports import write_report
from flowstill.schema.registry import Registry
from support.compared_runs import PLAIN
from support.outside_code import TRANSFER

MINE = (
    TRANSFER
    + """
from pathlib import Path

with open(Path(__file__).with_suffix(".ran"), "a") as log:
    log.write("x")


@fs.register_procedure
def my_joint(transfer, *, steps: int, lr):
    return fs.joint(transfer, steps=steps, lr=lr, rule=Half())


@fs.register_method("my-method", transfers="the norms")
def my_method():
    return fs.joint(Norms(), steps=4000, lr=0.01, rule=Half())
"""
)
RECIPE = """
uses: mine.py
name: outside
data: {name: digits, batch: 16}
teacher: {network: {name: resnet8, options: {width: 0.5}}, stages: [{name: task, steps: 2, task: labels, lr: 0.01}]}
student: {network: {name: resnet8, options: {width: 0.5}}, stages: my-method}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and the file that it uses, and a working directory elsewhere."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "recipes" / "mine.py").write_text(MINE)
    (tmp_path / "recipes" / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "recipes"


def runs_of(folder: Path) -> int:
    """How often the used file has run."""
    log = folder / "mine.ran"
    return len(log.read_text()) if log.exists() else 0


def forget() -> None:
    """As in a new process: nothing from outside is registered."""
    for registry in Registry.every:
        for name in [name for name in registry._entries if name.startswith(("my-", "my_"))]:
            del registry._entries[name], registry._origins[name]


def test_a_file_runs_only_if_trusted(here: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(here / "r.yaml")
    assert str(caught.value) == (
        f"{here / 'r.yaml'}:2: uses[0]: {str(here / 'mine.py')!r} is a Python file, whose code would run. "
        "Allow that with trust_code=True."
    )
    assert runs_of(here) == 0
    recipe = load_recipe(here / "r.yaml", trust_code=True, set=["student.stages.joint.rule.share=0.25"])
    assert recipe.uses == (str(here / "mine.py"),)
    assert recipe.jobs["student"].stages[0].updates[0].rule.share == 0.25
    assert runs_of(here) == 1


def test_train_resume_evaluate_reload_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, run = str(here / "r.yaml"), str(here / "run")
    options = ["--out", run, "--scale", "0.001", "--device", "cpu", "--precision", "32", "--trust-code"]
    assert main(["check", recipe, "--trust-code"]) == 0
    assert "my-norms" in capsys.readouterr().out
    assert main(["train", recipe, *options]) == 0
    assert main(["train", recipe, *options, "--resume"]) == 0
    assert "is already finished" in capsys.readouterr().out
    assert main(["evaluate", run, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "--trust-code" in error
    assert str(here / "mine.py") in error
    assert main(["evaluate", run, "--device", "cpu", "--trust-code"]) == 0

    again = load_recipe(Path(run, "recipe.yaml"), trust_code=True)
    assert again == load_recipe(recipe, scale=0.001, trust_code=True)
    assert load_recipe(again) == again
    (here / "mine.py").unlink()
    opened = fs.Run.open(run)
    assert opened.student(torch.zeros(1, 1, 8, 8)).shape == (1, 10)  # a built-in network needs no file
    assert "my-norms" in write_report(opened).read_text()


def test_a_stopped_run_continues_after_a_file_has_moved(here: Path) -> None:
    class Stop(Exception):
        pass

    def stop(job: str, stage: str, done: int) -> None:
        if (job, done) == ("student", 2):
            raise Stop

    recipe = load_recipe(here / "r.yaml", scale=0.001, trust_code=True)
    whole = fs.train(recipe, here / "whole", **PLAIN)
    with pytest.raises(Stop):
        fs.train(recipe, here / "stopped", on_step=stop, **PLAIN)
    moved = here.parent / "moved"
    moved.mkdir()
    for name in ("mine.py", "r.yaml"):
        (here / name).rename(moved / name)
    forget()
    recipe = load_recipe(moved / "r.yaml", scale=0.001, trust_code=True)
    run = fs.train(recipe, here / "stopped", resume=True, **PLAIN)
    want, got = ((folder.path / "student.safetensors").read_bytes() for folder in (whole, run))
    assert got == want


def test_resuming_does_not_run_files_named_only_in_the_run_folder(here: Path) -> None:
    recipe = load_recipe(here / "r.yaml", scale=0.001, trust_code=True)
    fs.train(recipe, here / "run", **PLAIN)
    before = (here / "run" / "recipe.yaml").read_text()
    other = here / "other.py"
    other.write_text("raise SystemExit('this must not run')")
    (here / "run" / "recipe.yaml").write_text(before.replace(str(here / "mine.py"), str(other)))
    with pytest.raises(RunError, match=r"its 'uses' names other\.py"):
        fs.train(recipe, here / "run", resume=True, **PLAIN)
    (here / "away").mkdir()
    (here / "away" / "mine.py").write_text("raise SystemExit('this must not run')")
    (here / "run" / "recipe.yaml").write_text(before.replace(str(here / "mine.py"), str(here / "away" / "mine.py")))
    assert fs.train(recipe, here / "run", resume=True, **PLAIN).finished


def test_spawned_processes_import_what_the_recipe_uses(here: Path) -> None:
    recipe = load_recipe(here / "r.yaml", scale=0.0005, trust_code=True)
    ran = runs_of(here)
    run = fs.train(recipe, here / "run", devices=2, **PLAIN)
    assert run.finished
    assert runs_of(here) == ran + 2


def test_distill_takes_a_method_from_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = fs.create("resnet8", num_classes=10, in_channels=1)
    student = fs.create("resnet8", num_classes=10, in_channels=1)
    file = here / "mine.py"
    run = fs.distill(
        teacher, student, "digits", "my-method", uses=str(file), scale=0.001, out=here / "objects", **PLAIN
    )
    assert run.recipe["uses"] == [str(file)]
    command = ["distill", "--teacher", "resnet8", "--teacher-weights", str(here / "objects" / "teacher.safetensors")]
    command += ["--student", "resnet8", "--data", "digits", "--method", "my-method", "--scale", "0.001"]
    command += ["--device", "cpu", "--precision", "32", "--out", str(here / "named")]
    assert main([*command, "--uses", str(here / "mne.py")]) == 2
    assert "Did you mean 'mine.py'?" in capsys.readouterr().err
    assert main([*command, "--uses", str(file)]) == 0
    assert main([*command, "--uses", str(file), "--resume"]) == 0
    assert main(["evaluate", str(here / "named"), "--trust-code", "--device", "cpu"]) == 0


def test_an_installed_module_needs_no_trust(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "my_installed_knowledge.py").write_text(MINE)
    monkeypatch.syspath_prepend(here)
    monkeypatch.delitem(sys.modules, "my_installed_knowledge", raising=False)
    (here / "r.yaml").write_text(RECIPE.replace("mine.py", "[my_installed_knowledge]"))
    recipe = load_recipe(here / "r.yaml")
    assert recipe.uses == ("my_installed_knowledge",)
    # The file is this module already, so it does not run under a second name.
    by_path = load_recipe(here / "r.yaml", set=["uses=my_installed_knowledge.py"], trust_code=True)
    assert by_path.jobs == recipe.jobs


def test_a_procedure_from_a_file_makes_the_stages(here: Path) -> None:
    mapping = "{procedure: my_joint, transfer: {name: my-norms, weight: 2}, steps: 8, lr: {0: 0.1, 4: 0.01}}"
    (here / "r.yaml").write_text(RECIPE.replace("my-method", mapping))
    (stage,) = load_recipe(here / "r.yaml", trust_code=True).jobs["student"].stages
    (update,) = stage.updates
    assert (stage.steps, update.rule.name, update.transfer[0].weight.value) == (8, "my-half", 2)


def test_a_file_is_looked_for_beside_the_recipe_then_in_the_working_directory(here: Path) -> None:
    (here.parent / "elsewhere" / "mine.py").write_text("raise SystemExit('the wrong one')")
    assert load_recipe(here / "r.yaml", trust_code=True).uses == (str(here / "mine.py"),)
    (here.parent / "elsewhere" / "mine.py").write_text(MINE)
    (here / "mine.py").unlink()
    with pytest.raises(
        RecipeError, match=r"already a knowledge 'my-norms', from \S+/recipes/mine.py; \S+/elsewhere/mine"
    ):
        load_recipe(here / "r.yaml", trust_code=True)
    forget()
    assert load_recipe(here / "r.yaml", trust_code=True).uses == (str(here.parent / "elsewhere" / "mine.py"),)


@pytest.mark.parametrize(
    ("uses", "said"),
    [
        ("min.py", "r.yaml:2: uses[0]: No file '{here}/min.py'. Did you mean 'mine.py'?"),
        ("[no_such_module]", "r.yaml:2: uses[0]: No module 'no_such_module'. Expected the name of an installed module"),
        ("bad.py", "r.yaml:2: uses[0]: {here}/bad.py cannot be imported: {here}/bad.py:2: ZeroDivisionError"),
        ("3", "r.yaml:2: uses: expected names of installed modules and paths of Python files, got 3"),
        ("[mine.py, 3]", "r.yaml:2: uses[1]: expected text, got 3"),
    ],
)
def test_failed_imports_give_one_clear_line(here: Path, uses: str, said: str, monkeypatch) -> None:
    monkeypatch.chdir(here)
    (here / "bad.py").write_text("x = 0\n1 / x\n")
    (here / "r.yaml").write_text(RECIPE.replace("mine.py", uses).replace("my-method", "fsp"))
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml", trust_code=True)
    assert str(caught.value).startswith(said.format(here=here))
    assert "\n" not in str(caught.value)


def test_uses_is_written_and_read_back(here: Path) -> None:
    recipe = fs.Recipe("r", fs.Data("digits"), {"a": fs.Job("resnet8")}, uses="../recipes/mine.py")
    assert recipe.uses == (str(here / "mine.py"),)
    (here / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(here / "again.yaml", trust_code=True) == recipe
    assert load_recipe(here / "again.yaml", set=["uses=[]"]).uses == ()
    assert json.dumps(recipe.uses) == json.dumps([str(here / "mine.py")])


def test_a_file_that_the_user_types_runs_from_the_working_directory(here: Path) -> None:
    (here / "r.yaml").write_text(RECIPE.replace("uses: mine.py\n", ""))
    (here.parent / "elsewhere" / "mine.py").write_text(MINE)
    (here / "mine.py").write_text("raise SystemExit('the wrong one')")  # not what was typed in another folder
    assert load_recipe(here / "r.yaml", set=["uses=mine.py"]).uses == (str(here.parent / "elsewhere" / "mine.py"),)


def test_a_typed_file_does_not_make_others_trusted(here: Path) -> None:
    (here / "other.py").write_text("raise SystemExit('this must not run')")
    (here / "r.yaml").write_text(RECIPE.replace("mine.py", "[mine.py, other.py]"))
    with pytest.raises(RecipeError, match=r"uses\[1\]: .*other\.py' is a Python file"):
        load_recipe(here / "r.yaml", set=[f"uses[0]={here / 'mine.py'}"])
