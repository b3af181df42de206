"""A table of a paper: rows, teachers kept, numbers beside the printed ones, a stop in the middle."""

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import flowstill as fs
from flowstill.cli import main
from flowstill.data import open_data
from flowstill.data.spec import Data
from flowstill.engine import training
from flowstill.errors import RecipeError
from flowstill.papers import reproduce as module
from flowstill.papers.estimate import estimate
from flowstill.papers.figure import shown
from flowstill.papers.printed import Printed, printed_tables
from flowstill.papers.reproduce import jobs_left, make_table, plan_table, reproduce
from flowstill.papers.rows import cell, columns_of, jobs_of, restricted, rows_of, updates_of
from flowstill.papers.table import Cell, Table, comma_separated, lines, markdown
from flowstill.papers.teachers import teacher_key, trained_by_itself
from flowstill.recipes.check import check
from flowstill.recipes.dry import dry
from flowstill.recipes.load import load_recipe
from flowstill.runs import JobSummary, Scores, Summary
from support.compared_runs import PLAIN, rows, stop_at

TINY = """
name: tiny-table
about: small
data: {name: digits, batch: 32, augment: {shift: 1}}
jobs:
  teacher:
    network: &net {name: resnet8, options: {width: 0.5}}
    stages: [&task {name: task, steps: 6, lr: 0.05, task: labels}]
  scratch: {network: *net, stages: [*task]}
  first: {network: *net, teacher: teacher, stages: [&flow {name: transfer, steps: 4, lr: 0.01, transfer: fsp}]}
  fsp_1: {network: *net, start: {job: first, stage: transfer}, stages: [*task], seed: 1}
  fsp_2: {network: *net, start: {job: first, stage: transfer}, stages: [*task], seed: 2}
  kd: {network: *net, teacher: teacher, stages: [{name: joint, steps: 6, lr: 0.05, task: labels, transfer: soft_logits}]}
ensembles: {fsp: {jobs: [fsp_1, fsp_2]}}
"""
PRINTED = Printed(
    "A paper, Table 9",
    ("net1", "net2", "average", "ensemble", "total_iterations"),
    {"scratch": (50.0,) * 4 + (6.0,), "fsp": (60.0, 62.0, 61.0, 63.0, 16.0)},
)


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def quiet(text):
    pass


def make(plan, out, **options):
    return reproduce(plan, out, say=quiet, **{**PLAIN, **options})


def test_rows_are_jobs_or_several_of_them(tiny):
    recipe = load_recipe(tiny)
    assert jobs_of(recipe, "scratch") == ("scratch",)
    assert jobs_of(recipe, "fsp") == ("fsp_1", "fsp_2")
    assert rows_of(recipe) == ("teacher", "scratch", "first", "fsp", "kd")
    with pytest.raises(RecipeError, match=r"tiny-table has no row 'scrach'\. Did you mean 'scratch'"):
        jobs_of(recipe, "scrach")


def test_a_restricted_recipe_has_what_its_rows_build_on(tiny):
    recipe = load_recipe(tiny)
    assert set(restricted(recipe, ["fsp"]).jobs) == {"fsp_1", "fsp_2", "first", "teacher"}
    assert set(restricted(recipe, ["fsp"]).ensembles) == {"fsp"}
    assert set(restricted(recipe, ["scratch"]).jobs) == {"scratch"}
    assert not restricted(recipe, ["scratch"]).ensembles


def test_a_shared_beginning_is_counted_once(tiny):
    recipe = load_recipe(tiny)
    assert updates_of(recipe, ["fsp_1", "fsp_2"]) == 4 + 2 * 6
    assert updates_of(recipe, ["kd"]) == 6


def test_cells_are_what_their_columns_say(tiny):
    recipe = load_recipe(tiny)
    jobs = {
        "fsp_1": JobSummary(accuracy=60.0, parameters=120_000, macs=3_000_000, top5=90.0),
        "fsp_2": JobSummary(accuracy=63.0),
    }
    summary = Summary(jobs=jobs, ensembles={"fsp": Scores(accuracy=65.0)})
    expected = {
        "net1": 60.0,
        "net2": 63.0,
        "net3": None,
        "average": 61.5,
        "accuracy": 61.5,
        "ensemble": 65.0,
        "1": 60.0,
        "total_iterations": 16.0,
        "params_million": 0.12,
        "flops_million": 6.0,
        "top1_error": 40.0,
        "top5_error": 10.0,
        "unheard": None,
    }
    assert {column: cell(recipe, summary, "fsp", column) for column in expected} == expected
    assert cell(recipe, Summary(), "fsp", "average") is None


def test_a_variant_that_is_asked_for_by_itself_has_its_accuracy(tiny):
    printed = Printed("A paper, Table 9", ("1", "2"), {"fsp": (60.0, 62.0)})
    accuracies = {"fsp_1": 64.0, "fsp_2": 61.0, "kd": 70.0}
    jobs = {name: JobSummary(accuracy=accuracy) for name, accuracy in accuracies.items()}
    runs = [SimpleNamespace(summary=Summary(jobs=jobs))]
    table = make_table(replace(plan_table(tiny, rows=["fsp_2", "kd"]), printed=printed), runs)
    assert lines(table)[1:] == [("fsp_2 *", "62.00", "61.00", "-1.00"), ("kd", "–", "70.00", "–")]
    table = make_table(replace(plan_table(tiny, rows=["fsp", "kd"]), printed=printed), runs)
    assert lines(table) == [
        ("row", "1", "2", "accuracy"),
        ("fsp *", "64.00 (60.00)", "61.00 (62.00)", "–"),
        ("kd", "–", "–", "70.00"),
    ]
    assert [(cell.row, cell.column) for cell in shown(table)] == [("fsp", "2"), ("kd", "accuracy")]


def test_every_printed_column_can_have_a_number():
    for name, printed in printed_tables().items():
        recipe = load_recipe(name)
        held = {column for row in printed.rows for column in columns_of(recipe, row, printed.columns)}
        assert held == set(printed.columns), name


def test_the_table_has_means_spreads_and_differences():
    cells = (Cell("a", "accuracy", 50.0, (40.0, 44.0)), Cell("b", "accuracy", None, ()))
    table = Table("t", "T", cells, {"a": ("its weights",), "b": ()}, ("Said.",))
    assert lines(table)[1:] == [("a *", "50.00", "42.00 ± 2.83", "-8.00"), ("b", "–", "–", "–")]
    assert "| a * | 50.00 | 42.00 ± 2.83 | -8.00 |" in markdown(table)
    assert "its weights (a)" in markdown(table)
    assert "Said." in markdown(table)
    rows = list(csv.DictReader(comma_separated(table).splitlines()))
    assert [rows[0][key] for key in ("paper", "mean", "difference", "seed_0", "seed_1")] == [
        "50.0",
        "42.0",
        "-8.0",
        "40.0",
        "44.0",
    ]
    assert float(rows[0]["spread"]) == pytest.approx(8**0.5, abs=1e-6)
    assert rows[1]["mean"] == ""


def test_a_table_from_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "printed_tables", lambda: {"tiny-table": PRINTED})
    table = make(plan_table(tiny, seeds=2), tmp_path / "out")
    assert table.rows == ("scratch", "fsp")
    assert table.at("fsp", "total_iterations").ours == (16.0, 16.0)
    assert len(table.at("fsp", "ensemble").ours) == 2
    assert all(0 <= value <= 100 for value in table.at("fsp", "average").ours)
    assert table.at("scratch", "net1").difference == pytest.approx(table.at("scratch", "net1").mean - 50)
    for name in ("table.md", "table.csv", "table.png", "table.svg"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    runs = sorted((tmp_path / "out").glob("seed-*"))
    assert len(runs) == 2
    summaries = [fs.Run.open(run).summary["jobs"] for run in runs]
    assert "kd" not in summaries[0]  # no printed row asks for it
    for number, summary in enumerate(summaries):
        assert table.at("fsp", "net2").ours[number] == summary["fsp_2"]["accuracy"]


def test_the_teacher_is_trained_once_for_all_seeds_and_tables(tiny, tmp_path, monkeypatch):
    trained = []
    plain = training.RunWriter.create
    monkeypatch.setattr(
        training.RunWriter, "create", lambda path, **more: (trained.append(str(path)), plain(path, **more))[1]
    )
    make(plan_table(tiny, seeds=2, rows=["kd"]), tmp_path / "one")
    assert sum("teachers" in path for path in trained) == 1
    make(plan_table(tiny, rows=["first"]), tmp_path / "other")
    assert sum("teachers" in path for path in trained) == 1
    make(plan_table(tiny, rows=["first"], scale=2), tmp_path / "longer")
    assert sum("teachers" in path for path in trained) == 2
    shutil.rmtree(tmp_path / "teachers")  # a table that is whole does without
    before = len(trained)
    make(plan_table(tiny, seeds=2, rows=["kd"]), tmp_path / "one")
    assert len(trained) == before
    assert jobs_left(plan_table(tiny, seeds=2, rows=["kd"]), tmp_path / "one", "32") == {}


def test_rows_that_are_added_later_give_the_same_numbers(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "printed_tables", dict)
    plans = [plan_table(tiny, seeds=2, rows=rows) for rows in (["kd"], ["scratch", "fsp"], ["fsp", "kd"])]
    for plan in plans:
        table = make(plan, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        make(plan_table(tiny, rows=["fsp", "kd"]), tmp_path / "other", on_step=stop_at(("first", "transfer", 2)))
    at_once = make(plan_table(tiny, seeds=2, rows=["fsp", "kd"]), tmp_path / "other")
    assert table.cells == at_once.cells
    runs = sorted((tmp_path / "out").glob("seed-*"))
    assert len(runs) == 2
    assert jobs_left(plan_table(tiny, seeds=3, rows=["kd", "scratch"]), tmp_path / "out", "32") == {
        "scratch": 1,
        "kd": 1,
    }
    assert jobs_left(plan_table(tiny, rows=["kd"]), tmp_path / "new", "32") == {"kd": 1}
    assert jobs_left(plan_table(tiny, rows=["kd"]), tmp_path / "elsewhere" / "new", "32") == {"teacher": 1, "kd": 1}
    for path in runs:
        run = fs.Run.open(path)
        assert set(run.jobs) == {"teacher", "scratch", "first", "fsp_1", "fsp_2", "kd"}
        counted = [row[:4] for row in rows(run)]
        assert len(set(map(tuple, counted))) == len(counted)  # no step of a job was measured twice


def test_a_run_goes_on_where_its_recipe_has_got_more_rows(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "printed_tables", dict)
    make(plan_table(tiny, rows=["scratch"]), tmp_path / "out")
    tiny.write_text(TINY.replace("ensembles:", "  more: {network: *net, stages: [*task], seed: 3}\nensembles:"))
    table = make(plan_table(tiny, rows=["scratch", "more"]), tmp_path / "out")
    (run,) = (tmp_path / "out").glob("seed-*")
    assert set(fs.Run.open(run).jobs) == {"scratch", "more"}
    assert all(table.at(row, "accuracy").ours for row in ("scratch", "more"))
    make(plan_table(tiny, rows=["scratch"], set=["scratch.stages.task.lr=0.1"]), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("seed-*"))) == 2


def test_what_was_written_of_other_rows_does_not_stay(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "printed_tables", dict)
    make(plan_table(tiny, seeds=2, rows=["scratch", "kd"]), tmp_path / "out")
    assert (tmp_path / "out" / "paired.md").exists()
    make(plan_table(tiny, seeds=2, rows=["kd"]), tmp_path / "out")
    assert not list((tmp_path / "out").glob("paired.*"))


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


def test_another_precision_is_another_run(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "printed_tables", dict)
    plan = plan_table(tiny, rows=["scratch"])
    for precision in ("32", "bf16", "32"):
        make(plan, tmp_path / "out", precision=precision)
    assert len(list((tmp_path / "out").glob("seed-*"))) == 2


def test_a_job_that_teaches_is_no_baseline_though_its_pupil_is_not_asked_for(tiny, tmp_path, monkeypatch):
    """It is trained once for all seeds."""
    monkeypatch.setattr(module, "printed_tables", dict)
    tiny.write_text(
        TINY.replace("ensembles:", "  pupil: {network: *net, teacher: scratch, stages: [*flow]}\nensembles:")
    )
    make(plan_table(tiny, seeds=2, rows=["scratch", "kd"]), tmp_path / "out")
    assert not (tmp_path / "out" / "paired.md").exists()


def test_differences_between_seeds_with_their_own_teachers_say_so(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "printed_tables", dict)
    monkeypatch.setattr(module, "trained_by_itself", lambda recipe, name: False)
    make(plan_table(tiny, seeds=2, rows=["scratch", "kd"]), tmp_path / "out")
    assert "for teachers of their own" in (tmp_path / "out" / "paired.md").read_text()


def test_the_note_tells_whose_the_teacher_is(tiny):
    at = lambda path, rows: module.notes(plan_table(path, rows=rows), 2)[0]  # noqa: E731
    assert "one teacher for all" in at(tiny, ["kd"])
    assert "teacher" not in at(tiny, ["scratch"])
    assert "each with its own teacher" in at("fsp-table1", ["fsp_shared_init"])


def test_a_row_that_was_left_half_done_is_finished_before_others(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "printed_tables", dict)
    with pytest.raises(KeyboardInterrupt):
        make(plan_table(tiny, rows=["scratch", "kd"]), tmp_path / "out", on_step=stop_at(("kd", "joint", 3)))
    plan = plan_table(tiny, rows=["first"])
    assert jobs_left(plan, tmp_path / "out", "32") == {"first": 1, "kd": 1}
    seen = []
    make(plan, tmp_path / "out", on_step=lambda *here: seen.append(here))
    assert seen == [
        *(("kd", "joint", step) for step in (4, 5, 6)),
        *(("first", "transfer", step) for step in (1, 2, 3, 4)),
    ]


def test_a_teachers_key_holds_what_its_weights_depend_on(tiny):
    recipe = load_recipe(tiny)
    key = teacher_key(recipe, "teacher", "32", "")
    others = {
        "elsewhere": replace(recipe, data=replace(recipe.data, root="/elsewhere")),
        "another name": replace(recipe, name="x"),
    }
    assert {teacher_key(other, "teacher", "32", "") for other in others.values()} == {key}
    changed = {
        "batch": replace(recipe, data=replace(recipe.data, batch=16)),
        "seed": replace(recipe, seed=1),
        "steps": load_recipe(tiny, set=["teacher.stages.task.steps=7"]),
        "network": load_recipe(tiny, set=["teacher.network.options.width=1"]),
        "labels": load_recipe(tiny, set=["teacher.labels=100"]),
        "rate": load_recipe(tiny, set=["teacher.stages.task.lr=0.1"]),
        "augmentation": load_recipe(tiny, set=["data.augment.shift=2"]),
    }
    keys = {what: teacher_key(other, "teacher", "32", "") for what, other in changed.items()} | {
        "precision": teacher_key(recipe, "teacher", "bf16", ""),
        "pixels": teacher_key(recipe, "teacher", "32", "of other images"),
    }
    assert len(set(keys.values()) | {key}) == len(keys) + 1


def test_only_teachers_that_train_by_themselves_are_kept(tiny):
    recipe = load_recipe(tiny)
    assert [name for name in recipe.jobs if trained_by_itself(recipe, name)] == ["teacher"]


@pytest.mark.parametrize("where", [("teacher", "task", 3), ("first", "transfer", 2), ("kd", "joint", 4)])
def test_a_stopped_table_goes_on_where_it_was_with_the_same_numbers(tiny, tmp_path, where):
    plan, stop = plan_table(tiny, rows=["fsp", "kd"]), stop_at(where)
    steps, seen = [], []
    whole = make(plan, tmp_path / "whole" / "out", on_step=lambda *here: steps.append(here))

    def interrupt(*here):
        seen.append(here)
        stop(*here)

    with pytest.raises(KeyboardInterrupt):
        make(plan, tmp_path / "cut" / "out", on_step=interrupt)
    assert seen[-1] == where
    assert make(plan, tmp_path / "cut" / "out", on_step=lambda *here: seen.append(here)) == whole
    assert seen == steps  # each step once


def test_a_stand_in_is_said(tiny, tmp_path):
    tiny.write_text(TINY.replace("name: digits", "name: mnist"))
    plan = plan_table(tiny, rows=["scratch"], data="digits")
    assert plan.stand_in == "digits"
    make(plan, tmp_path / "out")
    assert "those of digits, which stands in" in (tmp_path / "out" / "table.md").read_text()


def test_another_budget_goes_into_another_run(tiny, tmp_path):
    for scale in (1, 2):
        make(plan_table(tiny, rows=["scratch"], scale=scale), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("seed-*"))) == 2


def test_the_estimate_counts_updates_and_measures_each_kind_once(tiny, monkeypatch):
    recipe = load_recipe(tiny)
    seen = []
    from flowstill.papers import estimate as its

    plain = its.train
    monkeypatch.setattr(its, "train", lambda small, *a, **k: (seen.extend(small.jobs), plain(small, *a, **k))[1])
    found = estimate(recipe, check(recipe, (1, 8, 8), 10), device="cpu", precision="32")
    assert found.updates_of == {"teacher": 6, "scratch": 6, "first": 4, "fsp_1": 6, "fsp_2": 6, "kd": 6}
    assert all(value > 0 for value in found.seconds.values())
    assert "fsp_2" not in seen  # as fsp_1
    parameters = {name: plan.counts.parameters for name, plan in check(recipe, (1, 8, 8), 10).items()}
    assert found.bytes >= 4 * sum(parameters.values())


def test_dry_recipes_need_no_data(tiny):
    small = dry(load_recipe("fsp-table3", data_root="nowhere"))
    assert {stage.steps for job in small.jobs.values() for stage in job.stages} == {2}
    data = open_data(small.data)
    assert data.shape == (3, 32, 32)
    (batch,) = data.train_batches("all", batch=4, steps=1)
    assert batch.images.shape == (4, 3, 32, 32)
    assert open_data(Data("synthetic:owner/set", size=16, channels=1)).shape == (1, 16, 16)


@pytest.mark.parametrize("command", [["train", "digits"], ["reproduce", "digits", "--rows", "student"]])
def test_a_dry_run_runs_and_keeps_nothing(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--dry-run", "--device", "cpu"]) == 0
    assert re.search(r"digits: \d jobs, \d stages, two steps each on made-up images: all run", capsys.readouterr().out)
    assert not list(tmp_path.iterdir())


def test_the_command(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "printed_tables", lambda: {"tiny-table": PRINTED})
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
    assert re.search(r"tiny-table: 2 rows, 2 seeds, 50 updates of 32 images to go; about \d+ s on this machine", shown)
    assert shown.rstrip().endswith("table.svg")  # two networks and one are not paired
    assert re.search(r"fsp \* +\d+\.\d\d ± \d+\.\d\d \(60\.00\)", shown)
    assert main(command) == 0  # all is there
    again = capsys.readouterr().out
    assert "tiny-table: 2 rows, 2 seeds, all trained already" in again
    assert "is there" in again
    assert re.findall(r"^ *fsp \*.*$", again, re.MULTILINE) == re.findall(r"^ *fsp \*.*$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fsp-tabel3"], "There is no recipe 'fsp-tabel3'. Did you mean 'fsp-table3'"),
        (["digits", "--rows", "studnet"], "digits has no row 'studnet'. Did you mean 'student'"),
        (["digits", "--seeds", "0"], "--seeds 0: at least one"),
        (["digits", "--scale", "0"], "--scale: expected a number above 0"),
        (["fsp-table3", "--data-root", "nowhere"], "Data folder 'nowhere' does not exist"),
        (["digits", "--set", "teacher.network.options.init=msra"], "jobs.teacher.network: init 'msra': choose 'he'"),
    ],
)
def test_bad_input_makes_nothing(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert not shown.out  # nothing was measured or promised before
    assert not list(tmp_path.iterdir())


def test_printed_tables_are_those_of_the_specification():
    """The package's numbers against the papers' list, where it is at hand."""
    listed = Path(__file__).parents[3] / "shared" / "spec" / "targets.yaml"
    if not listed.exists():
        pytest.skip("the papers' list is not here")
    import yaml

    tables = {name: table for name, table in yaml.safe_load(listed.read_text()).items() if table and "rows" in table}
    ours = printed_tables()
    assert set(ours) == set(tables)
    for name, table in tables.items():
        rows = {row: tuple(value) if isinstance(value, list) else (value,) for row, value in table["rows"].items()}
        assert ours[name].rows == rows
        assert ours[name].columns == tuple(map(str, table.get("columns", ["accuracy"])))
        assert all(len(row) == len(ours[name].columns) for row in rows.values())


def test_a_recipe_without_printed_numbers_is_a_table_too(tiny, tmp_path):
    table = make(plan_table(tiny), tmp_path / "out")
    assert table.rows == ("teacher", "scratch", "first", "fsp", "kd")
    assert all(one.printed is None for one in table.cells)
    (run,) = (tmp_path / "out").glob("seed-*")
    assert fs.Run.open(run).finished
