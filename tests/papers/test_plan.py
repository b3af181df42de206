"""Before training: which teachers are shared, what will be left to do, and what the table will say."""

from dataclasses import replace

from flowstill.data import open_data
from flowstill.data.spec import Data
from flowstill.papers.estimate import estimate
from flowstill.papers.plan import plan_table
from flowstill.papers.reproduce import notes
from flowstill.papers.teachers import teacher_key, trained_by_itself
from flowstill.recipes.check import check
from flowstill.recipes.dry import dry
from flowstill.recipes.load import load_recipe


def test_the_note_says_whether_seeds_share_a_teacher(tiny):
    at = lambda path, rows: notes(plan_table(path, rows=rows), 2)[0]  # noqa: E731
    assert "one teacher for all" in at(tiny, ["kd"])
    assert "teacher" not in at(tiny, ["scratch"])
    assert "each with its own teacher" in at("fsp-table1", ["fsp_shared_init"])


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


def test_the_estimate_counts_updates_and_measures_each_kind_once(tiny, monkeypatch):
    recipe = load_recipe(tiny)
    seen = []
    from flowstill.papers import estimate as estimating

    plain = estimating.train
    monkeypatch.setattr(estimating, "train", lambda small, *a, **k: (seen.extend(small.jobs), plain(small, *a, **k))[1])
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
