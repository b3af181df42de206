"""Rows of a table: their jobs, their cells, and how they are printed."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from flowstill.errors import RecipeError
from flowstill.papers.figure import shown
from flowstill.papers.plan import plan_table
from flowstill.papers.printed import Printed, printed_tables
from flowstill.papers.reproduce import make_table
from flowstill.papers.rows import cell, columns_of, jobs_of, restricted, rows_of, updates_of
from flowstill.papers.table import Cell, Table, comma_separated, lines, markdown
from flowstill.recipes.load import load_recipe
from flowstill.runs import JobSummary, Scores, Summary


def test_a_row_is_one_job_or_several(tiny):
    recipe = load_recipe(tiny)
    assert jobs_of(recipe, "scratch") == ("scratch",)
    assert jobs_of(recipe, "fsp") == ("fsp_1", "fsp_2")
    assert rows_of(recipe) == ("teacher", "scratch", "first", "fsp", "kd")
    with pytest.raises(RecipeError, match=r"tiny-table has no row 'scrach'\. Did you mean 'scratch'"):
        jobs_of(recipe, "scrach")


def test_a_restricted_recipe_keeps_what_its_rows_build_on(tiny):
    recipe = load_recipe(tiny)
    assert set(restricted(recipe, ["fsp"]).jobs) == {"fsp_1", "fsp_2", "first", "teacher"}
    assert set(restricted(recipe, ["fsp"]).ensembles) == {"fsp"}
    assert set(restricted(recipe, ["scratch"]).jobs) == {"scratch"}
    assert not restricted(recipe, ["scratch"]).ensembles


def test_a_shared_beginning_is_counted_once(tiny):
    recipe = load_recipe(tiny)
    assert updates_of(recipe, ["fsp_1", "fsp_2"]) == 4 + 2 * 6
    assert updates_of(recipe, ["kd"]) == 6


def test_cells_match_their_columns(tiny):
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


def test_a_single_variant_shows_its_accuracy(tiny):
    printed = Printed("A paper, Table 9", ("1", "2"), {"fsp": (60.0, 62.0)})
    accuracies = {"fsp_1": 64.0, "fsp_2": 61.0, "kd": 70.0}
    jobs = {name: JobSummary(accuracy=accuracy) for name, accuracy in accuracies.items()}
    runs = {0: Summary(jobs=jobs)}
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


ON_OTHER_SLIDES = {  # than the tables themselves: the teachers
    "dense-cifar10-min": {"teacher": (91.91,)},
    "dense-cifar100-min": {"teacher": (64.69,)},
}


def test_printed_tables_match_the_specification():
    """The package's numbers against the papers' list, if available."""
    listed = Path(__file__).parents[3] / "shared" / "spec" / "targets.yaml"
    if not listed.exists():
        pytest.skip("the papers' list is not here")
    import yaml

    tables = {name: table for name, table in yaml.safe_load(listed.read_text()).items() if table and "rows" in table}
    packaged = printed_tables()
    assert set(packaged) == set(tables)
    for name, table in tables.items():
        rows = {row: tuple(value) if isinstance(value, list) else (value,) for row, value in table["rows"].items()}
        assert packaged[name].rows == ON_OTHER_SLIDES.get(name, {}) | rows
        assert packaged[name].columns == tuple(map(str, table.get("columns", ["accuracy"])))
        assert all(len(row) == len(packaged[name].columns) for row in rows.values())
