"""``flowstill reproduce``: what it prints, and what it refuses."""

import re

import pytest

from flowstill.cli import main
from flowstill.papers import plan as planning
from support.tiny_table import PRINTED


def test_the_command(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(planning, "printed_tables", lambda: {"tiny-table": PRINTED})
    command = [
        "reproduce",
        str(tiny),
        "--seeds",
        "2",
        "--rows",
        "fsp,scratch",
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--precision",
        "32",
    ]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert re.search(r"tiny-table: 2 rows, 2 seeds, 50 updates of 32 images left; about \d+ s on this machine", shown)
    assert shown.rstrip().endswith("table.svg")  # two networks and one are not paired
    assert re.search(r"fsp \* +\d+\.\d\d ± \d+\.\d\d \(60\.00\)", shown)
    assert main(command) == 0  # all is there
    again = capsys.readouterr().out
    assert "tiny-table: 2 rows, 2 seeds, all trained already" in again
    assert "seed 0: already trained, in" in again
    assert re.findall(r"^ *fsp \*.*$", again, re.MULTILINE) == re.findall(r"^ *fsp \*.*$", shown, re.MULTILINE)


def test_the_command_names_the_paired_differences(tiny, tmp_path, capsys):
    command = [
        "reproduce",
        str(tiny),
        "--seeds",
        "2",
        "--rows",
        "scratch,kd",
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--precision",
        "32",
    ]
    assert main(command) == 0
    assert capsys.readouterr().out.rstrip().endswith("table.svg, paired.md, paired.csv")
    assert "| kd |" in (tmp_path / "out" / "paired.md").read_text()


@pytest.mark.parametrize("command", [["train", "digits"], ["reproduce", "digits", "--rows", "student"]])
def test_a_dry_run_runs_and_keeps_nothing(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--dry-run", "--device", "cpu"]) == 0
    assert re.search(
        r"digits: \d jobs, \d stages, two steps each on synthetic images: all succeeded", capsys.readouterr().out
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fsp-tabel3"], "There is no recipe 'fsp-tabel3'. Did you mean 'fsp-table3'"),
        (["digits", "--rows", "studnet"], "digits has no row 'studnet'. Did you mean 'student'"),
        (["digits", "--seeds", "0"], "--seeds 0: expected at least 1"),
        (["digits", "--scale", "0"], "--scale 0.0: expected a number above 0"),
        (["fsp-table3", "--data-root", "nowhere"], "Data folder 'nowhere' does not exist"),
        (["digits", "--set", "teacher.network.options.init=mrsa"], "jobs.teacher.network: init 'mrsa': choose 'he'"),
    ],
)
def test_bad_input_creates_nothing(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert not shown.out  # nothing was measured or promised before
    assert not list(tmp_path.iterdir())
