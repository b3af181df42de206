"""A recipe for each table of the papers, and for claims beside them: rows, updates, what is shared."""

from __future__ import annotations

from importlib import resources

import pytest

from flowstill.cli import main
from flowstill.papers.printed import printed_tables
from flowstill.papers.rows import jobs_of, restricted, updates_of
from flowstill.recipes.load import load_recipe, recipe_names
from flowstill.recipes.recipe import AfterStage, Recipe

TABLES = printed_tables()
CLAIMS = ("fsp-modules", "kr-claims", "kr-figure5")
OURS = (*TABLES, *CLAIMS)
QUICK = ["fsp-table3", "fsp-table5", "dense-cifar10-min", "kr-table1", "svd-table1", "kr-figure5"]  # one of each kind
CHECKED = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OURS]
NET_COLUMNS = ("net1", "net2", "net3")


def test_every_table_has_a_recipe_and_so_have_the_claims() -> None:
    assert set(OURS) <= set(recipe_names())


@pytest.mark.parametrize("name", OURS)
def test_a_recipe_is_short(name: str) -> None:
    text = resources.files("flowstill.papers").joinpath("tables", f"{name}.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40


@pytest.mark.parametrize("name", CHECKED)
def test_a_recipe_passes_its_check(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", name]) == 0
    assert capsys.readouterr().out.startswith(f"{name}: ")


@pytest.mark.parametrize("name", TABLES)
def test_every_printed_row_exists_with_as_many_networks(name: str) -> None:
    recipe, printed = load_recipe(name), TABLES[name]
    for row in printed.rows:
        variants = [f"{row}_{column}" for column in printed.columns]
        if set(NET_COLUMNS) <= set(printed.columns):
            jobs = jobs_of(recipe, row)
            assert jobs == (f"{row}_1", f"{row}_2", f"{row}_3")
            assert recipe.ensembles[row].jobs == jobs
        elif row in recipe.jobs:
            assert jobs_of(recipe, row) == (row,)
        else:
            assert set(variants) <= set(recipe.jobs)


@pytest.mark.parametrize("row", TABLES["svd-table4"].rows)
def test_a_row_of_variants_is_trained_whole(row: str) -> None:
    recipe = load_recipe("svd-table4")
    kept = restricted(recipe, [row]).jobs
    assert set(kept) == {"vgg_teacher", *(f"{row}_{column}" for column in TABLES["svd-table4"].columns)}


@pytest.mark.parametrize(
    ("name", "row"),
    [(name, row) for name, table in TABLES.items() if "total_iterations" in table.columns for row in table.rows],
)
def test_numbers_of_updates_match_the_papers(name: str, row: str) -> None:
    recipe, printed = load_recipe(name), TABLES[name]
    assert updates_of(recipe, jobs_of(recipe, row)) == printed.rows[row][printed.columns.index("total_iterations")]


def first_job(recipe: Recipe, name: str) -> str:
    """The job that ``name`` takes its initial weights from."""
    start = recipe.jobs[name].start
    return first_job(recipe, start.job) if isinstance(start, AfterStage) else name


@pytest.mark.parametrize("name", OURS)
def test_no_student_starts_from_its_teachers_initial_weights(name: str) -> None:
    recipe = load_recipe(name)
    for job_name, job in recipe.jobs.items():
        first = recipe.jobs[first_job(recipe, job_name)]
        if job.teacher and recipe.jobs[job.teacher].network == first.network:
            assert first.seed != recipe.jobs[job.teacher].seed, job_name


@pytest.mark.parametrize("name", [name for name, table in TABLES.items() if set(NET_COLUMNS) <= set(table.columns)])
def test_the_networks_of_a_row_differ_only_in_their_seeds(name: str) -> None:
    recipe = load_recipe(name)
    for row in TABLES[name].rows:
        jobs = [recipe.jobs[job] for job in jobs_of(recipe, row)]
        assert len({job.seed for job in jobs}) == 3
        first = jobs[0]
        for job in jobs[1:]:
            assert (job.network, job.teacher, job.start, job.stages) == (
                first.network,
                first.teacher,
                first.start,
                first.stages,
            )


SHARED = {
    "fitnet_1_loss": "transfer",
    "fitnet_3_loss": "transfer",
    "fsp_shared_init": "transfer",
    "teacher_plus_21k": "task",
}


@pytest.mark.parametrize("row", TABLES["fsp-table1"].rows)
def test_table_1_shares_first_stages_like_the_paper(row: str) -> None:
    recipe = load_recipe("fsp-table1")
    starts = {job.start for name in jobs_of(recipe, row) for job in [recipe.jobs[name]]}
    if row not in SHARED:
        assert starts == {None}
        return
    (start,) = starts
    assert isinstance(start, AfterStage)
    assert start.stage == SHARED[row]
    if row == "teacher_plus_21k":
        assert start.job == "teacher_1"
    else:
        (stage,) = recipe.jobs[start.job].stages  # nothing but the transfer
        assert stage.name == start.stage
        assert recipe.jobs[start.job].teacher == "teacher_1"
