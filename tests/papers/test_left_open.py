"""Rows that rest on a reconstruction are known by what they train on."""

import pytest

from flowstill.papers.left_open import left_open
from flowstill.papers.plan import plan_table
from flowstill.papers.reproduce import make_table
from flowstill.papers.rows import rows_of
from flowstill.papers.table import legend, lines
from flowstill.recipes.load import load_recipe


def marked(name):
    plan = plan_table(name)
    return {row.removesuffix(" *") for row, *_ in lines(make_table(plan, {}))[1:] if row.endswith(" *")}


ROWS = {
    "fsp-table3": {"fitnet", "fsp"},
    "dense-cifar10-min": {"hint", "fsp", "dense_sequential"},
    "kr-table1": {"fitnet", "fsp", "kr_dense", "kr", "kdgan", "kr_kdgan"},
    "svd-table3": {"fsp_two_stage", "fsp_joint"},
    "fsp-table1": {"fitnet_1_loss", "fitnet_3_loss", "fsp_shared_init", "fsp_shuffled"},  # by what they start from
}


@pytest.mark.parametrize(("table", "rows"), ROWS.items(), ids=ROWS)
def test_marked_rows_of_a_table(table, rows):
    plan = plan_table(table)
    assert marked(table) & set(plan.rows) == rows


def test_distorted_images_are_a_reconstruction_in_every_row():
    recipe = load_recipe("kr-table4")
    for row in rows_of(recipe):
        assert "what distorts the images" in left_open(recipe, row)


def test_a_teachers_own_reconstruction_is_not_its_students():
    recipe = load_recipe("fsp-table5")
    assert left_open(recipe, "student_scratch") == ()
    assert left_open(recipe, "fsp_of_finetuned") == ("how the FSP loss weighs its matrices",)


def test_the_strided_vgg_and_sparse_recoding_are_named():
    points = {row: left_open(load_recipe("svd-table2"), row) for row in rows_of(load_recipe("svd-table2"))}
    assert all(points[row] == ("the layout of the strided VGG",) for row in points if "teacher" not in row)
    recoded = left_open(load_recipe("kr-figure5"), "recoding")
    assert recoded == ("the threshold and the strength of sparse recoding",)
    assert left_open(load_recipe("kr-figure5"), "l2") == ()


def test_the_legend_names_points_and_rows():
    said = "\n".join(legend(make_table(plan_table("kr-table1"), {})))
    assert "- the networks and weights of KDGAN (kdgan, kr_kdgan)" in said
