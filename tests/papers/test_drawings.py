"""The papers' figures: what is drawn is what was measured, and what the formulas say."""

from dataclasses import replace

import pytest

import flowstill as fs
from flowstill.cli import main
from flowstill.errors import RecipeError
from flowstill.papers import reached
from flowstill.papers.drawings import EPSILONS, draw, penalty_curves, task_curves
from flowstill.papers.plan import plan_table
from flowstill.papers.reached import reached_table
from flowstill.papers.reproduce import reproduce
from flowstill.recipes.load import dump_recipe, load_recipe
from flowstill.recipes.recipe import Data, Recipe
from oracles import representing
from support.archive_files import write_cifar

CURVES = """
name: tiny-curves
data: {name: digits, batch: 32}
figure: KIND
jobs:
  teacher:
    network: &net {name: resnet8, options: {width: 0.5}}
    stages: [&task {name: task, steps: 20, lr: 0.05, task: labels}]
  fsp: {network: *net, teacher: teacher, stages: [{name: transfer, steps: 5, lr: 0.01, transfer: fsp}, *task]}
"""
PLAIN = {"device": "cpu", "precision": "32", "progress": False}


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_penalty_curves_are_the_papers_formula(epsilon):
    gradients, values = penalty_curves(epsilon)
    for gradient, value in list(zip(gradients, values, strict=True))[::37]:
        assert value == pytest.approx(representing.phi0(gradient, epsilon), rel=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curves")
    (folder / "r.yaml").write_text(CURVES.replace("KIND", "curves"))
    return fs.train(load_recipe(folder / "r.yaml"), folder / "run", **PLAIN)


def recipe_of(run):
    return load_recipe(run.path / "recipe.yaml")


def test_curves_follow_the_order_of_the_rows(run):
    recipe = recipe_of(run)
    fewer = replace(recipe, jobs={"teacher": recipe.jobs["teacher"]})
    assert list(task_curves(fewer, run, "test/accuracy")) == ["teacher"]
    other = replace(recipe, jobs={name: recipe.jobs[name] for name in ("fsp", "teacher")})
    assert list(task_curves(other, run, "test/accuracy")) == ["fsp", "teacher"]


def test_curves_begin_with_the_task(run):
    """What FSP did before it is not counted."""
    accuracy = task_curves(recipe_of(run), run, "test/accuracy")
    assert set(accuracy) == {"teacher", "fsp"}
    assert accuracy["fsp"][0] == accuracy["teacher"][0]
    assert accuracy["fsp"][0][-1] == 20
    last = run.summary["jobs"]
    assert [values[-1] for _, values in accuracy.values()] == [last[job]["accuracy"] for job in accuracy]
    assert task_curves(recipe_of(run), run, "train/fsp")["fsp"][0][-1] == 5


@pytest.mark.parametrize("kind", ["curves", "kernels"])
def test_figures_of_runs_are_written(run, tmp_path, kind):
    (tmp_path / "r.yaml").write_text(CURVES.replace("KIND", kind))
    for path in draw(load_recipe(tmp_path / "r.yaml"), [run], tmp_path / "out"):
        assert path.stat().st_size > 1000


def test_a_figure_comes_with_its_table(tmp_path):
    (tmp_path / "r.yaml").write_text(CURVES.replace("KIND", "curves"))
    reproduce(plan_table(tmp_path / "r.yaml", rows=["fsp"]), tmp_path / "out", say=lambda text: None, **PLAIN)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"figure.png", "figure.svg", "table.md", "reached.md", "reached.csv"} <= written


def test_updates_are_counted_until_the_first_jobs_final_accuracy(run):
    """By hand: the first evaluation at or above the bar, brought back to where the line to it crosses the bar."""
    table = reached_table(load_recipe(run.path / "recipe.yaml"), [run])
    curves = task_curves(recipe_of(run), run, "test/accuracy")
    end = curves["teacher"][1][-1]
    for job, (steps, values) in curves.items():
        for share in (80, 90, 95):
            found = [number for number, value in enumerate(values) if value >= end * share / 100]
            reached = table.at(job, f"updates_to_{share}").measured
            if not found:
                assert reached == ()
                continue
            before = steps[found[0] - 1] if found[0] else steps[0]
            assert before <= reached[0] <= steps[found[0]]
    assert "final accuracy of teacher" in table.notes[0]


def test_a_bar_that_one_seed_never_reaches_has_no_mean(run, monkeypatch):
    ends = iter([97.0, 20.0])
    curves = {}
    monkeypatch.setattr(
        reached,
        "task_curves",
        lambda recipe, one, metric: (
            curves.setdefault(id(one), next(ends))
            and {"teacher": ([10, 20], [50.0, 100.0]), "fsp": ([10, 20], [10.0, curves[id(one)]])}
        ),
    )
    other = fs.Run.open(run.path)
    table = reached.reached_table(load_recipe(run.path / "recipe.yaml"), [run, other])
    assert table.at("teacher", "updates_to_80").measured == (16.0, 16.0)
    assert table.at("fsp", "updates_to_80").measured == ()
    assert table.at("fsp", "updates_to_own_80").measured == pytest.approx((10 + 10 * 67.6 / 87, 10 + 10 * 6 / 10))


def test_curves_are_drawn_from_more_evaluations_than_others_have(run, tmp_path):
    (tmp_path / "r.yaml").write_text(CURVES.replace("figure: KIND\n", ""))
    plain = fs.train(load_recipe(tmp_path / "r.yaml"), tmp_path / "run", **PLAIN)
    points = {
        which: len(task_curves(recipe_of(one), one, "test/accuracy")["fsp"][0])
        for which, one in {"plain": plain, "drawn": run}.items()
    }
    assert points == {"plain": 1, "drawn": 3}  # 20 updates of 32 images, three forwards each, on 500 test images: 3.8


def test_figures_that_need_no_training(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "kr-figure2"]) == 0
    assert (tmp_path / "runs" / "kr-figure2" / "figure.svg").exists()
    assert main(["check", "kr-figure2"]) == 0
    assert main(["reproduce", "kr-figure2", "--dry-run"]) == 0
    capsys.readouterr()
    assert main(["train", "kr-figure2", "--out", "elsewhere"]) == 2
    assert "`flowstill reproduce kr-figure2` draws it" in capsys.readouterr().err


def test_samples_show_plain_images_and_distorted_ones(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py", 10, fine=False)
    recipe = Recipe("samples", Data("tcifar10", root=str(tmp_path)), figure="samples")
    assert all(path.stat().st_size > 1000 for path in draw(recipe, [], tmp_path / "out"))
    assert load_recipe(write(tmp_path, recipe)) == recipe
    with pytest.raises(RecipeError, match=r"Expected data tcifar10 or tcifar100\. Received: 'digits'"):
        draw(Recipe("samples", Data("digits"), figure="samples"), [], tmp_path)


def write(folder, recipe):
    (folder / "r.yaml").write_text(dump_recipe(recipe))
    return folder / "r.yaml"


def test_only_figures_that_train_nothing_come_without_jobs():
    with pytest.raises(RecipeError, match="at least one job"):
        Recipe("r", Data("digits"), figure="curves")
