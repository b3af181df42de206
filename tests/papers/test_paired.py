"""Paired differences: to which networks, over which seeds, and Student's interval."""

import csv
import math
from dataclasses import replace

import pytest

from flowstill.papers.paired import Difference, baselines, mean_and_interval, paired_differences, write_paired
from flowstill.papers.plan import plan_table
from flowstill.recipes.load import load_recipe
from flowstill.recipes.recipe import Net, Weights
from flowstill.runs import JobSummary, Summary

RECIPE = load_recipe("fsp-table3")


def summaries(**accuracies):
    count = len(next(iter(accuracies.values())))
    return {
        3 + n: Summary(jobs={job: JobSummary(accuracy=values[n]) for job, values in accuracies.items()})
        for n in range(count)
    }


def test_a_taught_network_is_compared_with_the_same_network_alone():
    assert baselines(RECIPE, "fsp", tuple(RECIPE.jobs)) == ("student_scratch", "student_scratch_total")
    assert baselines(RECIPE, "fsp", ("teacher", "student_scratch", "fsp")) == ("student_scratch",)
    for untaught in ("teacher", "student_scratch"):
        assert baselines(RECIPE, untaught, tuple(RECIPE.jobs)) == ()


CONTROLS = {
    "fitnet": "student_scratch",
    "fsp": "student_scratch",
    "nst": "student_scratch",
    "kdgan": "student_scratch",
    "kr": "narrow_scratch",
    "kr_dense": "narrow_scratch",
    "kr_kdgan": "narrow_scratch",
    "kr_two_thirds": "two_thirds_scratch",
    "kr_two_modules": "narrow_two_modules_scratch",
}


@pytest.mark.parametrize("table", ["kr-table1", "kr-table2", "kr-table4"])
def test_each_row_of_knowledge_representing_has_a_control_with_its_network_rates_and_decay(table):
    recipe, printed = load_recipe(table), plan_table(table).rows
    for row, control in CONTROLS.items():
        if row not in recipe.jobs:
            continue
        assert baselines(recipe, row, tuple(recipe.jobs)) == (control,)
        if row in printed:
            assert control in printed  # so that they are compared unless somebody asks for other rows
        if not row.startswith("kr"):
            continue
        assert recipe.jobs[control].network == recipe.jobs[row].network
        (stage,), (alone,) = recipe.jobs[row].stages, recipe.jobs[control].stages
        mine, its = stage.players["aggregate"], alone.players["student"]
        assert (stage.steps, mine.lr, mine.optimizer) == (alone.steps, its.lr, its.optimizer)
    wide = recipe.jobs["student_scratch_kr"]
    assert wide.stages == recipe.jobs["narrow_scratch"].stages
    assert wide.network == recipe.jobs["student_scratch"].network


def test_if_none_has_the_decay_the_others_are_baselines():
    jobs = {name: job for name, job in load_recipe("cifar10-methods").jobs.items() if name != "alone_kr"}
    recipe = replace(load_recipe("cifar10-methods"), jobs=jobs)
    assert baselines(recipe, "kr", tuple(jobs)) == ("alone_task", "alone_total")


@pytest.mark.parametrize("change", [{"start": Weights("file")}, {"labels": 50}, {"network": Net("resnet14")}])
def test_jobs_that_started_differently_are_not_baselines(change):
    jobs = {**RECIPE.jobs, "student_scratch": replace(RECIPE.jobs["student_scratch"], **change)}
    assert baselines(replace(RECIPE, jobs=jobs), "fsp", tuple(jobs)) == ("student_scratch_total",)


def test_three_networks_are_compared_with_three():
    recipe = load_recipe("fsp-table1")
    rows = ("teacher", "teacher_21k", "teacher_plus_21k", "fsp_shared_init", "fsp_shuffled")
    for row in ("fsp_shared_init", "fsp_shuffled"):  # the first begins after a taught network's first stage
        assert baselines(recipe, row, rows) == ("teacher_21k",)


def test_a_row_with_taught_and_untaught_variants_is_split():
    recipe = load_recipe("svd-table4")
    runs = {0: Summary(jobs={name: JobSummary(accuracy=60.0 + n) for n, name in enumerate(recipe.jobs)})}
    found = paired_differences(recipe, ("vgg_student_pool",), runs)
    assert {d.baseline for d in found} == {"vgg_student_pool_none"}
    assert [d.row for d in found] == [f"vgg_student_pool_{rank}" for rank in (1, 2, 4, 8, 16)]
    assert [d.by_seed for d in found] == [{0: 1.0}, {0: 2.0}, {0: 3.0}, {0: 4.0}, {0: 5.0}]


def test_the_interval_is_students():
    values = (0.3, 1.1, -0.2, 0.8)
    difference = Difference("fsp", "alone", dict(enumerate(values)))
    mean = sum(values) / 4
    deviation = math.sqrt(sum((x - mean) ** 2 for x in values) / 3)
    half = 3.182446 * deviation / 2  # the 97.5 % point of t with 3 degrees of freedom, from a printed table
    assert difference.interval == pytest.approx((mean - half, mean + half), abs=1e-5)


def test_seeds_are_paired_and_missing_ones_left_out():
    runs = summaries(fsp=[None, 61.0, 63.0], student_scratch=[70.0, 60.0, 65.0])
    (found,) = paired_differences(RECIPE, ("fsp", "student_scratch"), runs)
    assert (found.row, found.baseline, found.by_seed) == ("fsp", "student_scratch", {4: 1.0, 5: -2.0})


def test_equal_differences_have_an_interval_of_width_zero(recwarn):
    assert Difference("fsp", "alone", {0: 1.5, 1: 1.5}).interval == (1.5, 1.5)
    assert not recwarn


def test_one_seed_has_no_interval():
    assert Difference("fsp", "alone", {0: 1.5}).interval is None
    assert mean_and_interval(Difference("fsp", "alone", {0: 1.5})) == "+1.50"


def test_files_have_a_line_for_each_row_and_each_seed_a_number(tmp_path):
    runs = summaries(fsp=[61.0, 63.0], student_scratch=[60.0, 60.0], student_scratch_total=[62.0, 62.0])
    rows = ("fsp", "student_scratch", "student_scratch_total")
    write_paired(RECIPE, paired_differences(RECIPE, rows, runs), (3, 4), tmp_path)
    text = (tmp_path / "paired.md").read_text()
    assert "| row | minus student_scratch | minus student_scratch_total |" in text
    assert "| fsp | +2.00 [-10.71, +14.71] | +0.00 [-12.71, +12.71] |" in text  # t(1) is 12.706, the deviation sqrt 2
    lines = list(csv.DictReader((tmp_path / "paired.csv").open()))
    assert [(line["baseline"], line["seed_3"], line["seed_4"]) for line in lines] == [
        ("student_scratch", "1.0", "3.0"),
        ("student_scratch_total", "-1.0", "1.0"),
    ]


def test_a_missing_seed_leaves_its_column_empty_and_is_noted(tmp_path):
    runs = summaries(fsp=[None, 61.0, 63.0], student_scratch=[70.0, 60.0, 65.0])
    write_paired(RECIPE, paired_differences(RECIPE, ("fsp", "student_scratch"), runs), (3, 4, 5), tmp_path)
    (line,) = csv.DictReader((tmp_path / "paired.csv").open())
    assert (line["seed_3"], line["seed_4"], line["seed_5"]) == ("", "1.0", "-2.0")
    assert "(2 seeds) |" in (tmp_path / "paired.md").read_text()


@pytest.mark.parametrize(("one", "said"), [(True, "for one teacher and"), (False, "for a teacher per seed and")])
def test_the_legend_says_whether_seeds_share_a_teacher(tmp_path, one, said):
    runs = summaries(fsp=[61.0, 63.0], student_scratch=[60.0, 65.0])
    differences = paired_differences(RECIPE, ("fsp", "student_scratch"), runs)
    write_paired(RECIPE, differences, (3, 4), tmp_path, one_teacher=one)
    assert said in (tmp_path / "paired.md").read_text()
