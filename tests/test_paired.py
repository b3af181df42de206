"""Paired differences: to which networks, over which seeds, and Student's interval."""

import csv
import math

import pytest

from flowstill.experiments.paired import Difference, baselines, paired_differences, shown, write_paired
from flowstill.recipes.load import load_recipe

RECIPE = load_recipe("fsp-table3")


def summaries(**accuracies):
    count = len(next(iter(accuracies.values())))
    return [{"jobs": {job: {"accuracy": values[n]} for job, values in accuracies.items()}} for n in range(count)]


def test_a_taught_network_is_held_against_the_same_network_alone():
    assert baselines(RECIPE, "fsp") == ("student_scratch", "student_scratch_total")
    assert baselines(RECIPE, "teacher") == baselines(RECIPE, "student_scratch") == ()
    assert baselines(load_recipe("kr-table1"), "kr") == ("narrow_scratch",)


def test_a_network_that_starts_from_weights_is_no_baseline():
    assert "finetuned" not in baselines(load_recipe("cifar10-transfer"), "fsp")


def test_the_interval_is_students():
    difference = Difference("fsp", "alone", (0.3, 1.1, -0.2, 0.8))
    mean = sum(difference.each) / 4
    deviation = math.sqrt(sum((x - mean) ** 2 for x in difference.each) / 3)
    half = 3.182446 * deviation / 2  # the 97.5 % point of t with 3 degrees of freedom, from a printed table
    assert difference.interval == pytest.approx((mean - half, mean + half), abs=1e-5)


def test_seeds_are_paired_and_missing_ones_left_out():
    runs = summaries(fsp=[61.0, 63.0, None], student_scratch=[60.0, 65.0, 70.0])
    (found,) = paired_differences(RECIPE, ("fsp", "student_scratch"), runs)
    assert (found.row, found.baseline, found.each) == ("fsp", "student_scratch", (1.0, -2.0))


def test_one_seed_has_no_interval():
    assert Difference("fsp", "alone", (1.5,)).interval is None
    assert shown(Difference("fsp", "alone", (1.5,))) == "+1.50"


def test_files_have_a_line_for_each_row_and_each_seed_a_number(tmp_path):
    runs = summaries(fsp=[61.0, 63.0], student_scratch=[60.0, 60.0], student_scratch_total=[62.0, 62.0])
    write_paired(RECIPE, paired_differences(RECIPE, ("fsp",), runs), tmp_path)
    text = (tmp_path / "paired.md").read_text()
    assert "| row | less student_scratch | less student_scratch_total |" in text
    assert "| fsp | +2.00 [-10.71, +14.71] | +0.00 [-12.71, +12.71] |" in text  # t(1) is 12.706, the deviation sqrt 2
    lines = list(csv.DictReader((tmp_path / "paired.csv").open()))
    assert [(line["baseline"], line["seed_0"], line["seed_1"]) for line in lines] == [
        ("student_scratch", "1.0", "3.0"), ("student_scratch_total", "-1.0", "1.0")]  # fmt: skip
