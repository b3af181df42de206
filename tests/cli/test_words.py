"""Options are named as the user writes them: arguments in Python, dashes on the command line."""

import ast
import re
from pathlib import Path

import pytest

import flowstill as fs
from flowstill.cli import main
from support.hostile import everything

NET = "from flowstill import create\ndef make(num_classes, in_channels):\n    return create('resnet8', num_classes, in_channels)\n"
OWN = """
name: own
data: {name: digits}
teacher: {network: net.py:make, stages: [{name: task, steps: 1, task: labels}]}
student: {network: resnet8, stages: [{name: joint, steps: 1, task: labels, transfer: fsp}]}
"""
# the same mistake in both languages, and how each names what to change
MISTAKES = {
    "folder in use": (
        lambda: fs.train("digits", "full"),
        ["train", "digits", "--out", "full"],
        ("Give another out=.", "Give another --out."),
    ),
    "file as folder": (
        lambda: fs.train("digits", "net.py"),
        ["train", "digits", "--out", "net.py"],
        ("Give another out=.", "Give another --out."),
    ),
    "run that is there": (
        lambda: fs.train("digits", "run"),
        ["train", "digits", "--out", "run"],
        ("Continue it with resume=True, or give another out=.", "Continue it with --resume, or give another --out."),
    ),
    "code in a recipe": (
        lambda: fs.train("own.yaml", "new"),
        ["train", "own.yaml"],
        ("allow it with trust_code=True", "allow it with --trust-code"),
    ),
    "used code": (
        lambda: fs.load_recipe("uses.yaml"),
        ["check", "uses.yaml"],
        ("Allow that with trust_code=True.", "Allow that with --trust-code."),
    ),
    "untrained teacher": (
        lambda: fs.distill("resnet8", "resnet8", "digits"),
        ["distill", "--teacher", "resnet8", "--student", "resnet8", "--data", "digits"],
        (
            "teacher_weights='FILE', or for a timm or torchvision network "
            "set='teacher.network.options.pretrained=true'.",
            "--teacher-weights FILE, or for a timm or torchvision network "
            "--set teacher.network.options.pretrained=true.",
        ),
    ),
    "folder as teacher": (
        lambda: fs.distill("full", "resnet8", "digits"),
        ["distill", "--teacher", "full", "--student", "resnet8", "--data", "digits"],
        ("teacher='NET' teacher_weights='FILE'", "--teacher NET --teacher-weights FILE"),
    ),
    "change": (
        lambda: fs.load_recipe("digits", set=["data.batch=x y"]),
        ["check", "digits", "--set", "data.batch=x y"],
        ("set='data.batch=x y': data.batch: expected", "--set 'data.batch=x y': data.batch: expected"),
    ),
    "scale": (
        lambda: fs.load_recipe("digits", scale=-1),
        ["check", "digits", "--scale", "-1"],
        ("scale=-1:", "--scale -1.0:"),
    ),
    "device": (
        lambda: fs.train("digits", "new", device="tpu"),
        ["train", "digits", "--device", "tpu"],
        ("device=: expected auto", "--device: expected auto"),
    ),
    "devices": (
        lambda: fs.train("digits", "new", device="cpu", devices=9999),
        ["train", "digits", "--device", "cpu", "--devices", "9999"],
        ("devices=9999: expected", "--devices 9999: expected"),
    ),
    "data root": (
        lambda: fs.train("own2.yaml", "new", data_root=5),
        ["check", "own2.yaml", "--data-root", "5"],
        ("data_root=5: data.root: expected text", "'5' does not exist"),
    ),
}


@pytest.fixture
def here(here: Path) -> Path:
    Path("net.py").write_text(NET)
    Path("own.yaml").write_text(OWN)
    Path("own2.yaml").write_text(OWN.replace("net.py:make", "resnet8").replace("digits", "cifar10"))
    Path("uses.yaml").write_text("uses: net.py\n" + OWN.replace("net.py:make", "resnet8"))
    Path("full").mkdir()
    Path("full/x").touch()
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text("name: digits\njobs: {}\n")
    return here


@pytest.mark.parametrize("mistake", MISTAKES)
def test_options_are_named_as_python_or_the_command_line_writes_them(here: Path, capsys, mistake: str) -> None:
    call, arguments, (in_python, in_shell) = MISTAKES[mistake]
    before = everything(here)
    with pytest.raises(fs.FlowstillError) as caught:
        call()
    assert in_python in str(caught.value)
    assert not re.search(r"(^|\s)--[a-z]", str(caught.value))
    assert main(arguments) == 2
    assert in_shell in capsys.readouterr().err
    assert everything(here) == before


def test_messages_outside_the_command_line_name_no_dashed_option() -> None:
    """Docstrings may; ``flowstill.errors.option`` says it in messages."""
    package = Path(fs.__file__).parent
    for file in sorted(package.rglob("*.py")):
        if file.parent.name != "cli":
            tree = ast.parse(file.read_text(encoding="utf-8"))
            docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            found = [t.value for t in texts if id(t) not in docs and re.search(r"(^|[\s'(])--[a-z]", t.value)]
            allowed = ("train RECIPE --out FOLDER", "a recipe's file it needs --trust-code")  # commands to type
            assert [text for text in found if not any(words in text for words in allowed)] == [], file


def test_a_file_that_the_user_types_runs(here: Path, capsys) -> None:
    assert main(["inspect", "net.py:make", "--against", "net.py:make"]) == 0
    assert main(["check", "digits", "--set", "student.network=net.py:make"]) == 0
    assert "student: net.py:make" in capsys.readouterr().out
    assert main(["check", "own.yaml"]) == 2  # named in the recipe alone
    assert main(["check", "own.yaml", "--trust-code"]) == 0


def test_distill_takes_typed_files_and_paths(here: Path) -> None:
    fs.train("own.yaml", "taught", trust_code=True, device="cpu", precision="32", progress=False)
    weights = Path("taught/teacher.safetensors")
    short = {"scale": 1e-5, "device": "cpu", "precision": "32", "progress": False}
    run = fs.distill(
        "net.py:make", Path("net.py:make"), "digits", teacher_weights=weights, out=Path("in-python"), **short
    )
    assert run.finished
    command = ["distill", "--teacher", "net.py:make", "--student", "net.py:make", "--data", "digits", "--scale", "1e-5"]
    command += ["--teacher-weights", str(weights), "--device", "cpu", "--precision", "32", "--out", "typed"]
    assert main(command) == 0
