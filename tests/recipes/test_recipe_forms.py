"""Recipes scaled, and written as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from flowstill.errors import RecipeError
from flowstill.knowledge.labels import Labels
from flowstill.recipes.dump import dump_recipe, plain
from flowstill.recipes.recipe import (
    AdaptiveClip,
    AfterStage,
    Augment,
    Constant,
    Cosine,
    Data,
    Ensemble,
    Flows,
    Job,
    Linear,
    Milestones,
    Net,
    Optimizer,
    Paper,
    Player,
    Recipe,
    Stage,
    Sum,
    Term,
    Update,
    Weights,
)
from flowstill.recipes.scaling import scaled
from flowstill.schema import specification
from flowstill.transfer.knowledge import Knowledge
from support.recipe_files import SHORT, load, steps


def test_everything_counted_in_steps_scales_together() -> None:
    recipe = scaled(everything(), 0.1)
    joint = recipe.jobs["joint"].stages[0]
    assert steps(recipe) == {"teacher": [40], "first": [10, 20], "second": [20], "joint": [30, 1, 1]}
    assert joint.players["student"].lr == Milestones({0: 0.1, 15: 0.01})
    assert joint.players["adapter"].lr == Cosine(0.4, 0.2)
    assert [update.rule for update in joint.updates] == [AdaptiveClip(mode="global", epoch_steps=39), Sum()]
    assert joint.updates[0].transfer[0].weight == Milestones({0: 1.0, 10: 0.0})
    assert joint.updates[0].task[0].weight == Linear((4.0, 1.0))


def test_scaling_by_one_changes_nothing_and_scaling_back_restores() -> None:
    assert scaled(everything(), 1) == everything()
    assert scaled(scaled(everything(), 10), 0.1) == everything()


def test_a_tiny_scale_leaves_one_step_of_each_stage_with_its_first_rate() -> None:
    recipe = scaled(everything(), 1e-9)
    assert steps(recipe) == {"teacher": [1], "first": [1, 1], "second": [1], "joint": [1, 1, 1]}
    student = recipe.jobs["joint"].stages[0].players["student"].lr
    assert student.at(0, 1) == 0.1
    assert recipe.jobs["joint"].stages[0].updates[0].rule == AdaptiveClip(mode="global", epoch_steps=1)


def test_load_scales_what_set_has_changed(here: Path) -> None:
    recipe = load(SHORT, set=["stages.transfer.steps=1000"], scale=0.1)
    assert steps(recipe) == {"teacher": [10], "student": [100, 10]}


def everything() -> Recipe:
    """A recipe that uses every part of the domain model."""
    task = Term(Labels(smoothing=0.1), Linear((4, 1)))
    fsp = {"name": "fsp", "weight": {0: 1, 100: 0}}

    def stage(name: str, count: int, **update: Any) -> dict[str, Any]:
        return {"name": name, "steps": count, "lr": {0: 0.1, 50: 0.01}, **update}

    cycle: Any = (
        (Update(task=(task,), transfer=fsp, rule=AdaptiveClip(mode="global", epoch_steps=390)),),
        (Update("adapter", task="labels", update_batchnorm=False),),
    )
    players = {
        "student": Player(lr=Milestones({0: 0.1, 150: 0.01})),
        "adapter": Player(("adapters",), Optimizer("adam", weight_decay=0), Cosine(0.4, 0.2)),
    }
    jobs: dict[str, Any] = {
        "teacher": Job("resnet26", (stage("task", 400, task="labels"),), start=Weights("t.safetensors"), seed=3),
        "first": Job(
            Net(
                "resnet8",
                {"width": 2, "odd": ["yes", "1e-3", "010", "null", "2020-01-01", "a: b", "é\n ", "", "<<", 1e-05]},
            ),
            (stage("transfer", 100, transfer=fsp), stage("task", 200, task="labels")),
            teacher="teacher",
        ),
        "second": Job(
            "resnet8", (stage("task", 200, task="labels"),), start=AfterStage("first", "transfer"), labels=20
        ),
        "joint": Job(
            "resnet8",
            (
                Stage("joint", 300, players, cycle),
                Stage("in turn", 10, {"student": Player()}, (cycle[0], (Update(task="labels"),))),
                Stage("student only", 10, {"student": Player(("student",))}, ((Update(task="labels"),),)),
            ),
            teacher="teacher",
            flows=(Flows(("conv1", "layer1.3"), ("bn1:input", "layer1.0")),),
            about="joint: 'quoted', \"doubly\"",
        ),
    }
    return Recipe(
        "everything",
        Data("digits", labels=200, augment=Augment(crop=4, rotate=15), channels=3),
        jobs,
        {"both": Ensemble(("first", "second"), "logits")},
        (("first",),),
        seed=5,
        paper=Paper("A paper, 2017", {"first": 91.91, "second": None}),
    )


def test_a_written_recipe_reads_back_equal(here: Path) -> None:
    text = dump_recipe(everything())
    assert load(text) == everything()
    assert dump_recipe(load(text)) == text


def test_a_written_recipe_reads_the_same_in_any_yaml_reader() -> None:
    assert yaml.safe_load(dump_recipe(everything())) == plain(everything())


def test_every_value_is_written_in_its_short_form(here: Path) -> None:
    written = yaml.safe_load(dump_recipe(load(SHORT)))
    assert set(written) == set(Recipe.__dataclass_fields__)
    transfer, task = written["jobs"]["student"]["stages"]
    assert transfer["lr"] == 0.001
    assert task["lr"] == {0: 0.1, 50: 0.01}
    assert task["task"] == [{"name": "labels", "smoothing": 0.0, "weight": 1.0}]
    assert transfer["transfer"][0]["name"] == "fsp"
    assert "players" not in task


def test_a_written_recipe_can_be_changed_and_run_again(here: Path) -> None:
    changes = ["student.stages.transfer.lr=0.02", "student.stages.transfer.transfer.fsp.weight=2"]
    recipe = load(dump_recipe(load(SHORT)), set=changes)
    transfer = recipe.jobs["student"].stages[0]
    assert transfer.players["student"].lr == Constant(0.02)
    assert transfer.updates[0].transfer[0].weight == Constant(2.0)


def test_a_knowledges_own_weight_is_kept_apart_from_the_terms() -> None:
    @specification
    class Heavy(Knowledge):
        """Stands for a paper whose own formula has a weight."""

        name: Literal["heavy"] = "heavy"
        weight: float = 1.0

    assert plain(Term(Heavy(weight=3), 2)) == {"weight": 2.0, "knowledge": {"name": "heavy", "weight": 3.0}}


def test_objects_in_options_cannot_be_written() -> None:
    recipe = Recipe("r", Data("digits"), {"a": Job(Net("resnet8", {"norm": object()}))})
    with pytest.raises(RecipeError, match="cannot be written as YAML"):
        dump_recipe(recipe)
