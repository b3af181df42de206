"""``stages: {procedure: NAME, ...}``: a procedure's stages, made of what a recipe file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import flowstill as fs
from flowstill.errors import RecipeError
from flowstill.recipes.load import load_recipe
from flowstill.recipes.recipe import Milestones, Optimizer, Stage, Term
from flowstill.transfer.procedures import blocks, cyclic, joint, two_stage

HEAD = """
data: {name: digits}
name: r
teacher: {network: resnet8, weights: t.safetensors}
student: resnet8
"""


@pytest.fixture
def stages(tmp_path: Path) -> Any:
    def read(text: str, **options: Any) -> tuple[Stage, ...]:
        (tmp_path / "r.yaml").write_text(HEAD + f"stages: {text}\n")
        return load_recipe(tmp_path / "r.yaml", **options).jobs["student"].stages

    return read


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (
            "{procedure: joint, transfer: fsp, steps: 1000, lr: {0: 0.1, 500: 0.01}}",
            joint("fsp", steps=1000, lr=Milestones({0: 0.1, 500: 0.01})),
        ),
        (
            "{procedure: joint, transfer: {name: fsp, weight: 2}, steps: 10, lr: 0.1, rule: {name: adaptive_clip, mode: global},"
            " task: [labels], optimizer: {nesterov: true}}",
            joint(
                Term(fs.FSP(), 2),
                steps=10,
                lr=0.1,
                rule=fs.AdaptiveClip(mode="global"),
                optimizer=Optimizer(nesterov=True),
            ),
        ),
        (
            "{procedure: joint, transfer: fsp, steps: 10, lr: 0.1, rule: adaptive_clip}",
            joint("fsp", steps=10, lr=0.1, rule=fs.AdaptiveClip()),
        ),
        (
            "{procedure: two_stage, transfer: fsp, transfer_steps: 5, transfer_lr: {linear: [1, 0]}, task_steps: 6, task_lr: 0.1}",
            two_stage(
                "fsp",
                transfer_steps=5,
                transfer_lr=fs.Stage("s", 1, task="labels", lr={"linear": [1, 0]}).players["student"].lr,
                task_steps=6,
                task_lr=0.1,
            ),
        ),
        ("{procedure: cyclic, transfers: [fsp, nst], steps: 5, lr: 0.1}", cyclic(["fsp", "nst"], steps=5, lr=0.1)),
        ("{procedure: blocks, transfers: [fsp, nst], steps: 5, lr: 0.1}", blocks(["fsp", "nst"], steps=5, lr=0.1)),
    ],
)
def test_a_mapping_gives_the_same_stages_as_the_function(stages: Any, text: str, same: tuple[Stage, ...]) -> None:
    assert stages(text) == same


def test_changes_and_scale_come_after(stages: Any) -> None:
    text = "{procedure: joint, transfer: fsp, steps: 1000, lr: 0.1}"
    (stage,) = stages(text, set=["student.stages.joint.steps=500"], scale=0.1)
    assert stage.steps == 50
    (alone,) = stages(text, set=["student.stages={procedure: alone, steps: 7, lr: 0.1}"])
    assert (alone.name, alone.steps) == ("task", 7)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{procedure: joi, steps: 1}", ["stages.procedure: Unknown procedure 'joi'. Did you mean 'joint'?"]),
        ("{procedure: 3}", ["stages.procedure: expected a procedure's name, got 3"]),
        (
            "{procedure: joint, transfers: fsp, step: 1}",
            [
                "stages.transfers: procedure 'joint' has no argument 'transfers'. Did you mean 'transfer'?",
                "stages.step: procedure 'joint' has no argument 'step'. Did you mean 'steps'?",
                "stages: procedure 'joint' needs 'lr'",
            ],
        ),
        ("{procedure: alone, steps: many, lr: 0.1}", ["stages.steps: expected a whole number, got 'many'"]),
        ("{procedure: alone, steps: 5, lr: fast}", ["stages.lr: expected a number, milestones {0: 0.1, 100: 0.01}"]),
        (
            "{procedure: alone, steps: 5, lr: 1, optimizer: {nme: 1}}",
            ["stages.optimizer.nme: unknown key. Did you mean"],
        ),
        ("{procedure: joint, transfer: fsp, steps: 5, lr: 1, rule: smu}", ["stages.rule: Unknown rule 'smu'. Did you"]),
        ("{procedure: alone, steps: 0, lr: 1}", ["expected at least 1, got 0"]),
        ("{procedure: joint, transfer: fps, steps: 5, lr: 1}", ["Unknown knowledge 'fps'. Did you mean 'fsp'?"]),
        ("{procedure: blocks, transfers: [fsp, nst], steps: 1, lr: 1}", ["blocks: 2 transfers cannot share 1 steps"]),
    ],
)
def test_invalid_arguments_are_named_with_their_line(stages: Any, text: str, said: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        stages(text)
    for line in said:
        assert line in str(caught.value)
    assert "r.yaml:6: " in str(caught.value)
