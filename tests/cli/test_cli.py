"""The command line: what it prints, what it keeps, and that it starts quickly."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from flowstill.cli import main
from flowstill.recipes.load import dump_recipe, load_recipe
from flowstill.runs import JobSummary, Run, RunWriter, Summary
from support.hostile import Evil, everything

TINY = """
name: tiny
about: two small networks, a few updates
data: {name: digits, batch: 16}
jobs:
  teacher:
    network: {name: resnet8, options: {width: 0.5}}
    stages: [{name: task, steps: 4, lr: 0.05, task: labels}]
  student_scratch:
    network: {name: resnet8, options: {width: 0.5}}
    labels: 100
    stages: [{name: task, steps: 4, lr: 0.05, task: labels}]
  student:
    about: taught
    network: {name: resnet8, options: {width: 0.5}}
    teacher: teacher
    labels: 100
    stages:
      - {name: transfer, steps: 4, lr: 0.01, transfer: fsp}
      - {name: task, steps: 4, lr: 0.05, task: labels}
paper: {title: none, accuracy: {teacher: 12.34}}
"""
PLAIN = ["--device", "cpu", "--precision", "32"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished run, and beside it the recipe that it came from and what was shown."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    with (folder / "shown").open("w") as shown, contextlib.redirect_stdout(shown):
        assert main(["train", str(folder / "tiny.yaml"), "--out", str(folder / "run"), *PLAIN]) == 0
    return folder


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 0
    shown = capsys.readouterr()
    for command in ("demo", "distill", "train", "reproduce", "check", "inspect", "evaluate", "list"):
        assert re.search(rf"^  {command} ", shown.out, re.MULTILINE)
    assert shown.err == ""


def test_all_problems_of_a_recipe_are_reported_at_once(here, capsys):
    Path("bad.yaml").write_text(TINY.replace("batch: 16", "bach: 16").replace("labels: 100", "labels: many"))
    assert main(["train", "bad.yaml"]) == 2
    shown = capsys.readouterr().err
    assert re.search(r"bad\.yaml:4: .*bach.*'batch'", shown)
    assert len(re.findall(r"bad\.yaml:\d+: .*labels.*'many'", shown)) == 2
    assert everything(here) == ["bad.yaml"]


def test_code_from_a_recipe_runs_only_if_trusted(here, capsys):
    Path("net.py").write_text(
        "open('ran', 'w')\nfrom flowstill import create\ndef make(num_classes, in_channels):\n"
        "    return create('resnet8', num_classes, in_channels, width=0.5)\n"
    )
    Path("own.yaml").write_text(TINY.replace("{name: resnet8, options: {width: 0.5}}", "net.py:make"))
    for command in ("check", "train"):
        assert main([command, "own.yaml"]) == 2
        assert "--trust-code" in capsys.readouterr().err
    assert everything(here) == ["net.py", "own.yaml"]
    assert main(["check", "own.yaml", "--trust-code"]) == 0
    assert Path("ran").exists()


def test_training_prints_the_table_and_writes_all_files(trained):
    folder, shown = trained / "run", (trained / "shown").read_text()
    summary = Run.open(folder).summary["jobs"]
    for job in ("teacher", "student_scratch", "student"):
        assert re.search(rf"^ *{job} +resnet8 +{summary[job]['accuracy']:.2f} ", shown, re.MULTILINE)
        assert (folder / f"{job}.safetensors").is_file()
    assert "12.34" in shown
    assert f"report: {folder / 'report.html'}" in shown
    assert "\x1b" not in shown
    for name in ("recipe.yaml", "metrics.csv", "summary.json", "report.html", "tensorboard"):
        assert (folder / name).exists()


def test_a_teacher_from_a_file_is_not_trained_again(trained, here):
    weights = trained / "run" / "teacher.safetensors"
    options = ["--set", f"teacher.weights={weights}", "--set", "seed=5", "--scale", "0.5", "--out", "run"]
    assert main(["train", str(trained / "tiny.yaml"), *options, *PLAIN]) == 0
    before, after = Run.open(trained / "run").summary, Run.open("run").summary
    assert after["jobs"]["teacher"]["steps"] == 0
    assert after["jobs"]["teacher"]["accuracy"] == before["jobs"]["teacher"]["accuracy"]
    assert after["jobs"]["student"]["steps"] == 4  # two stages of half of 4
    assert (before["seed"], after["seed"]) == (0, 5)
    assert Path("run/teacher.safetensors").read_bytes() == weights.read_bytes()


def test_a_finished_run_says_so_and_is_not_overwritten(trained, here, capsys):
    shutil.copytree(trained / "run", "run")
    before = {path: Path("run", path).read_bytes() for path in ("student.safetensors", "metrics.csv", "summary.json")}
    again = ["train", str(trained / "tiny.yaml"), "--out", "run", *PLAIN]
    assert main(again) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*again, "--resume"]) == 0
    assert "already finished" in capsys.readouterr().out
    assert main([*again, "--resume", "--set", "student.seed=9"]) == 2
    assert "another recipe" in capsys.readouterr().err
    assert {path: Path("run", path).read_bytes() for path in before} == before


def test_a_malicious_state_is_refused(trained, here, capsys):
    shutil.copytree(trained / "run", "run")
    summary = json.loads(Path("run/summary.json").read_text())
    Path("run/summary.json").write_text(json.dumps({**summary, "finished": False}))
    torch.save({"summary": "{}", "loop": Evil(here / "sprung")}, "run/state.pt")
    assert main(["train", str(trained / "tiny.yaml"), "--out", "run", "--resume", *PLAIN]) == 2
    assert re.match(r"error: .*state\.pt", capsys.readouterr().err)
    assert not Path("sprung").exists()


def test_evaluate_reproduces_the_accuracy(trained, capsys):
    assert main(["evaluate", str(trained / "run"), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    for job, row in Run.open(trained / "run").summary["jobs"].items():
        assert re.search(rf"^ *{job} +{row['accuracy']:.2f} ", shown, re.MULTILINE)


def test_a_folder_of_runs_is_refused_and_its_runs_are_named(trained, capsys):
    assert main(["evaluate", str(trained)]) == 2
    assert str(trained / "run") in capsys.readouterr().err


def test_check_shows_what_would_happen(here, capsys):
    assert main(["check", "digits"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^teacher: resnet26, 366,650 parameters", shown, re.MULTILINE)  # 1 channel: 2 * 9 * 16 fewer
    assert re.search(r"^student: resnet8, 75,002 parameters.*taught by teacher", shown, re.MULTILINE)
    student = shown[shown.index("\nstudent: ") :]
    assert re.search(
        r"stage transfer: 300 updates\n.*\n    fsp\n      teacher: .*layer3.*\n      student: .*layer3", student
    )
    assert re.search(r"stage task: 300 updates\n.*sgd, learning rate \{0: 0\.1, .*\n    labels", student)
    assert everything(here) == []


def test_check_follows_the_options(here, capsys):
    assert main(["check", "digits", "--scale", "0.1", "--set", "student.network=resnet14"]) == 0
    shown = capsys.readouterr().out
    assert "student: resnet14" in shown
    assert "stage transfer: 30 updates" in shown


def test_inspect_shows_sections_parameters_and_macs(capsys):
    assert main(["inspect", "resnet26"]) == 0
    shown = capsys.readouterr().out
    assert re.match(r"resnet26: 366,938 parameters, 54\.7\d M MACs for 3x32x32\n", shown)
    rows = re.findall(r"^ *(\d) +(\d+x\d+) .*layer(\d)\S* +(\d+)x\d+x\d+ +activation *$", shown, re.MULTILINE)
    assert rows == [("0", "32x32", "1", "16"), ("1", "16x16", "2", "32"), ("2", "8x8", "3", "64")]
    assert "note:" not in shown


def test_inspect_shows_where_the_parameters_are(capsys):
    """Shares of the 366,938: the third section's eight convolutions 18,432 + 7 * 36,864, and BatchNorm 8 * 128."""
    assert main(["inspect", "resnet26"]) == 0
    shown = capsys.readouterr().out
    third = 18_432 + 7 * 36_864 + 8 * 128
    assert re.search(rf"^ *2 +8x8 +{third / 366_938:.1%} ", shown, re.MULTILINE)
    stem, classifier = 3 * 16 * 9 + 2 * 16, 64 * 10 + 10
    assert f"{stem / 366_938:.1%} before the first section's entry, {classifier / 366_938:.1%} in the class" in shown


def test_inspect_notes_that_most_of_a_network_is_in_no_section(capsys):
    assert main(["inspect", "timm:levit_128s"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"note: 99% of its parameters, classifier aside, are in no section: .*99% beyond the last", shown)


def test_inspect_notes_which_maps_differ_in_kind(capsys):
    assert main(["inspect", "timm:resnet10t", "--against", "timm:mobilenetv2_035", "--image-size", "64"]) == 0
    shown = capsys.readouterr().out
    assert "note: the maps differ in kind, after an activation in the teacher, after a sum without activation" in shown
    assert "layer1 and blocks.1" in shown


@pytest.mark.parametrize(
    ("net", "what"), [("timm:vit_tiny_patch16_224", "tokens (B, N, D)"), ("torchvision:swin_t", "channels last")]
)
def test_inspect_explains_why_there_are_no_sections(net, what, capsys):
    assert main(["inspect", net]) == 2
    said = capsys.readouterr().err
    assert what in said
    assert "such as 'soft_logits'" in said


def test_inspect_pairs_two_networks(capsys):
    assert main(["inspect", "resnet26", "--against", "resnet8"]) == 0
    assert "FSP fits" in capsys.readouterr().out
    assert main(["inspect", "timm:resnet18", "--against", "resnet8", "--image-size", "64", "--classes", "7"]) == 0
    shown = capsys.readouterr().out
    assert "FSP does not fit" in shown
    assert "unpaired in timm:resnet18: section" in shown


def test_list_prints_every_registry(capsys):
    expected = {
        "nets": ["resnet8", "timm:NAME"],
        "methods": ["fsp", "dense-sequential"],
        "knowledge": ["fsp", "labels"],
        "data": ["digits", "cifar10"],
        "recipes": ["digits", "fsp-table3"],
        "procedures": ["two_stage", "adversarial"],
        "rules": ["adaptive_clip", "sum"],
    }
    for kind, names in expected.items():
        assert main(["list", kind]) == 0
        shown = capsys.readouterr().out
        for name in names:
            assert re.search(rf"^ *{name}\b.* \S", shown, re.MULTILINE)
        assert "…" not in shown


def test_the_demo_does_not_touch_other_runs(trained, here, capsys):
    shutil.copytree(trained / "run", "run")
    assert main(["demo", "--out", "run"]) == 2
    assert "another recipe" in capsys.readouterr().err


def test_the_demo_shows_a_finished_run_again(here, capsys):
    writer = RunWriter.create("runs/digits")
    digits = load_recipe("digits")
    writer.write_recipe(dump_recipe(digits))
    jobs = {name: JobSummary() for name in digits.jobs} | {"student": JobSummary(accuracy=98.76)}
    writer.write_summary(Summary(finished=True, jobs=jobs))
    assert main(["demo"]) == 0
    shown = capsys.readouterr().out
    assert "already finished" in shown
    assert re.search(r"^ *student +resnet8 +98\.76 ", shown, re.MULTILINE)
    assert "report: runs/digits/report.html" in shown


def test_a_closed_pipe_is_not_an_error(here):
    command = f"{sys.executable} -m flowstill list data | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.stderr == ""


def test_an_interrupt_prints_the_command_to_continue(here, capsys, monkeypatch):
    Path("long.yaml").write_text(TINY.replace("steps: 4", "steps: 5000"))
    command = ["train", "long.yaml", "--out", "a run", *PLAIN]
    monkeypatch.setattr(sys, "argv", ["flowstill", *command])

    def interrupt_the_loop():
        for _ in range(600):
            if Path("a run/metrics.csv").exists():
                break
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_the_loop, daemon=True).start()
    assert main(command) == 130
    shown = capsys.readouterr()
    assert (
        "interrupted; continue with: flowstill train long.yaml --out 'a run' --device cpu --precision 32 --resume\n"
        in shown.err
    )
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert not Run.open("a run").finished
    assert Path("a run/state.pt").exists()


def test_a_diverged_job_has_its_own_exit_code(here, capsys):
    Path("r.yaml").write_text(
        "name: lost\ndata: {name: digits, batch: 32}\njobs:\n"
        "  one: {network: {name: resnet8, options: {width: 0.25}}, stages: [{name: task, steps: 3, lr: 1e30, task: labels}]}\n"
    )
    for extra in ([], ["--resume"]):
        assert main(["train", "r.yaml", "--out", "run", "--precision", "32", *extra]) == 3
        said = capsys.readouterr()
        assert "no result for one: task, update" in said.err
        assert "diverged" in said.out
    assert main(["train", "r.yaml", "--out", "run", "--resume", "--set", "one.stages.task.lr=0.01"]) == 0
    assert main(["train", "r.yaml", "--out", "run", "--resume", "--set", "on_nonfinite=skp"]) == 2
    assert "Did you mean 'skip'?" in capsys.readouterr().err
