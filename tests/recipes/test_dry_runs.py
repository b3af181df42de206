"""Every packaged recipe runs: two steps of each of its stages on synthetic images of the right shape."""

import re

import pytest

from flowstill.cli import main
from flowstill.recipes.load import load_recipe, recipe_names

LARGE = {"dense-cifar100-fast", "fsp-table2", "fsp-table5", "kr-table3"}  # wide networks, or photographs
RECIPES = [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in sorted(recipe_names())]


@pytest.mark.parametrize("name", RECIPES)
def test_every_stage_of_every_job_runs(tmp_path, monkeypatch, capsys, caplog, name):
    monkeypatch.chdir(tmp_path)
    jobs = load_recipe(name).jobs
    assert main(["reproduce" if not jobs else "train", name, "--dry-run", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    if jobs:
        stages = sum(len(job.stages) for job in jobs.values())
        assert re.search(
            rf"{name}: {len(jobs)} jobs, {stages} stages, two steps each on synthetic images: all succeeded", said
        )
    else:
        assert "draws a figure" in said
    assert "not finite" not in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_table_is_tried_with_the_jobs_of_its_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "fsp-table1", "--dry-run", "--rows", "fsp_shared_init", "--device", "cpu"]) == 0
    assert "fsp-table1: 5 jobs, 5 stages" in capsys.readouterr().out  # a teacher, the first stage, three students
