"""The recipes of our own studies: every method at equal updates, beside two students trained alone."""

import pytest

from flowstill.knowledge.kdgan import KDGAN, adversarial, with_adversaries
from flowstill.knowledge.representing import alternating
from flowstill.papers.paired import baselines
from flowstill.papers.rows import updates_of
from flowstill.recipes.load import load_recipe
from flowstill.transfer.schedules import Milestones

STUDIES = {"cifar10-methods": 85_000, "cifar10-labels": 400, "cifar10-transfer": 200}


@pytest.mark.parametrize("name", STUDIES)
def test_every_method_has_the_same_number_of_updates(name):
    recipe = load_recipe(name)
    taught = [job for job in recipe.jobs if recipe.jobs[job].teacher]
    assert len(taught) > 3
    assert {updates_of(recipe, [job]) for job in (*taught, "alone_total")} == {STUDIES[name]}


@pytest.mark.parametrize("name", STUDIES)
def test_alone_on_the_task_is_as_long_as_the_second_stage(name):
    recipe = load_recipe(name)
    seconds = {job.stages[1].steps for job in recipe.jobs.values() if len(job.stages) == 2}
    assert seconds == {recipe.jobs["alone_task"].stages[0].steps}


@pytest.mark.parametrize("name", STUDIES)
def test_every_taught_student_has_both_baselines(name):
    recipe = load_recipe(name)
    for job in recipe.jobs:
        if recipe.jobs[job].teacher:
            expected = ("alone_kr",) if job.startswith("kr") else ("alone_task", "alone_total")
            assert baselines(recipe, job, tuple(recipe.jobs)) == expected


def test_knowledge_representing_has_a_control_with_its_rates_and_decay():
    jobs = load_recipe("cifar10-methods").jobs
    (alone,), (taught,) = jobs["alone_kr"].stages, jobs["kr"].stages
    mine, its = alone.players["student"], taught.players["aggregate"]
    assert (alone.steps, mine.lr, mine.optimizer) == (taught.steps, its.lr, its.optimizer)
    assert jobs["alone_kr"].network == jobs["kr"].network


def test_the_ablation_rows_match_the_dense_recipe():
    study, ablation = load_recipe("cifar10-methods").jobs, load_recipe("dense-ablation").jobs
    for name, original in (
        ("fsp", "plain"),
        ("dense", "dense"),
        ("sequential", "sequential"),
        ("dense_sequential", "dense_sequential"),
        ("alone_task", "student_scratch"),
        ("alone_total", "student_scratch_total"),
    ):
        assert study[name].stages == ablation[original].stages
    assert [study[job].stages for job in ("teacher", "fsp")] == [
        load_recipe("fsp-table3").jobs[job].stages for job in ("teacher", "fsp")
    ]


def test_every_method_of_the_papers_tables_is_a_row():
    """By what is transferred and whether gradients are recoded."""

    def taught(recipe):
        return {
            (
                frozenset(
                    term.knowledge.name for stage in job.stages for update in stage.updates for term in update.terms
                ),
                any(player.recode for stage in job.stages for player in stage.players.values()),
            )
            for job in recipe.jobs.values()
            if job.teacher
        }

    for table in ("fsp-table3", "kr-table1"):
        assert taught(load_recipe(table)) <= taught(load_recipe("cifar10-methods"))


def test_stages_written_out_for_games_and_knowledge_representing_match_the_procedures():
    jobs = load_recipe("cifar10-methods").jobs
    assert jobs["kdgan"].stages == adversarial(steps=85_000, lr=Milestones({0: 0.1, 42_500: 0.01, 63_750: 0.001}))
    represent = {
        "steps": 85_000,
        "lr": Milestones({0: 0.1, 39_844: 0.01, 63_750: 0.001}),
        "match_lr": Milestones({0: 0.01, 39_844: 0.001, 63_750: 1e-4}),
    }
    assert jobs["kr"].stages == alternating(**represent)
    assert jobs["kr_dense"].stages == alternating(**represent, recode=None)
    assert jobs["kr_kdgan"].stages == (with_adversaries(*alternating(**represent, posterior=KDGAN())),)


def test_the_two_groups_of_classes_are_disjoint():
    seven, three = (load_recipe(name).data.classes for name in ("cifar10-seven", "cifar10-transfer"))
    assert len(seven) == 7
    assert len(three) == 3
    assert not set(seven) & set(three)
