"""Tables with rows that diverged: shown as such, without a difference, and left out of statistics visibly."""

import csv
import re

import flowstill as fs
from flowstill.cli import main
from flowstill.papers.paired import Difference, mean_and_interval, write_paired
from flowstill.papers.plan import jobs_left, plan_table
from flowstill.papers.table import Cell, mean_and_spread
from support.diverging import MUCH
from support.tiny_table import make


def test_a_row_that_diverged_is_shown_as_such(tiny, tmp_path):
    plan = plan_table(tiny, seeds=2, rows=["kd", "scratch"], set=[f"kd.stages.joint.lr={MUCH}"])
    table = make(plan, tmp_path / "out")
    assert table.at("scratch", "accuracy").diverged == 0
    one = table.at("kd", "accuracy")
    assert (one.measured, one.diverged, one.difference) == ((), 2, None)
    assert mean_and_spread(one) == "diverged"
    assert set(table.failed) == {"kd, seed 0", "kd, seed 1"}
    text = (tmp_path / "out" / "table.md").read_text()
    assert re.search(r"\| kd\S* ?\*? \|.*diverged", text)
    assert "No result for kd, seed 1: joint, update" in text
    assert "| kd | diverged |" in (tmp_path / "out" / "paired.md").read_text()
    with open(tmp_path / "out" / "table.csv", newline="") as file:
        (row,) = [row for row in csv.reader(file) if row[0] == "kd"]
    assert row[3:] == ["", "", "", "diverged", "diverged"]


def test_rows_of_a_teacher_that_diverged_are_not_run(tiny, tmp_path, capsys):
    change = ["--set", f"teacher.stages.task.lr={MUCH}", "--rows", "kd,scratch", "--precision", "32"]
    assert main(["reproduce", str(tiny), "--out", str(tmp_path / "out"), *change]) == 3
    said = capsys.readouterr()
    assert "no result for kd, seed 0: not run, as 'teacher' diverged" in said.err
    (folder,) = (tmp_path / "out").glob("seed-*")
    assert list(fs.Run.open(folder).summary.jobs) == ["scratch"]
    plan = plan_table(tiny, rows=["kd", "scratch"], set=change[1:2])
    assert jobs_left(plan, tmp_path / "out", "32") == {}
    table = make(plan_table(tiny, rows=["kd"], set=change[1:2]), tmp_path / "out")
    assert mean_and_spread(table.at("kd", "accuracy")) == "diverged"


def test_seeds_that_diverged_are_counted(tmp_path, tiny):
    assert mean_and_spread(Cell("kd", "accuracy", 50.0, (60.0, 62.0), 1)) == "61.00 ± 1.41 (1 diverged)"
    some, none = Difference("kd", "scratch", {0: 1.0, 2: 1.0}, (1,)), Difference("fsp", "scratch", {}, (0, 1, 2))
    assert (none.mean, none.interval, mean_and_interval(none)) == (None, None, "diverged")
    write_paired(plan_table(tiny).whole, [some, none], (0, 1, 2), tmp_path)
    text = (tmp_path / "paired.md").read_text()
    assert "| kd | +1.00 [+1.00, +1.00] (2 seeds, 1 diverged) |" in text
    assert "| fsp | diverged |" in text
    with open(tmp_path / "paired.csv", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert rows[0][5:] == ["1.0", "diverged", "1.0"]
    assert rows[1][2:] == ["", "", "", "diverged", "diverged", "diverged"]
