"""Whatever a message suggests to write is accepted literally."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowstill.data import find_facts, open_data
from flowstill.errors import FlowstillError
from flowstill.nets import create, save_weights
from flowstill.recipes.check import check
from flowstill.recipes.load import load_recipe

START = """\
name: proposals
data: {name: digits, batch: 16}
jobs:
  teacher:
    network: {name: resnet8, options: {width: 0.5}}
    stages: [{name: task, steps: 4, lr: 0.05, task: labels}]
  student:
    network: {name: resnet8, options: {width: 0.5}}
    teacher: teacher
    stages: [{name: transfer, steps: 4, lr: 0.01, transfer: fsp}]
"""
STORED = START.replace("transfer: fsp", "transfer: fsp, knowledge: {name: stored}")
VIEWS = STORED.replace("batch: 16", "batch: 16, augment: {shift: 1}")
OTHER = START.replace("transfer: fsp", "transfer: attention")  # takes any two networks
NARROW = START.replace("teacher: teacher\n", "teacher: teacher\n    # narrow\n").replace(
    "student:\n    network: {name: resnet8, options: {width: 0.5}}",
    "student:\n    network: {name: resnet8, options: {width: 1}}",
)
# a recipe, what is wrong with it, what the message proposes, and where that is written
PROPOSALS = {
    "a job's teacher": (
        START.replace("    teacher: teacher\n", ""),
        "teacher: JOB",
        ("  student:\n", "  student:\n    teacher: teacher\n"),
    ),
    "a name in quotes": (
        START.replace("student:", "7:"),
        "put it in quotes",
        ("  7:", "  '7':"),
    ),
    "the nearest key": (START.replace("batch", "bacth"), "'batch'", ("bacth", "batch")),
    "the nearest network": (START.replace("resnet8", "resnt8"), "'resnet8'", ("resnt8", "resnet8")),
    "the nearest knowledge": (START.replace("fsp", "fps"), "'fsp'", ("fps", "fsp")),
    "another library": (
        OTHER.replace("{name: resnet8, options: {width: 0.5}}", "resnet18", 1),
        "'timm:resnet18'",
        ("resnet18", "timm:resnet18"),
    ),
    "the same in torchvision": (
        OTHER.replace("{name: resnet8, options: {width: 0.5}}", "resnet18", 1),
        "'torchvision:resnet18'",
        ("resnet18", "torchvision:resnet18"),
    ),
    "a number as the rate": (START.replace("0.05", "fast"), "a number", ("fast", "0.1")),
    "milestones": (
        START.replace("0.05", "fast").replace("steps: 4", "steps: 200"),
        "{0: 0.1, 100: 0.01}",
        ("fast", "{0: 0.1, 100: 0.01}"),
    ),
    "a line": (START.replace("0.05", "fast"), "{linear: [4, 1]}", ("fast", "{linear: [4, 1]}")),
    "a cosine": (START.replace("0.05", "fast"), "{cosine: 0.1}", ("fast", "{cosine: 0.1}")),
    "fixed views": (
        START.replace("batch: 16", "batch: 16, augment: {views: 8}"),
        "'shift'",
        ("views: 8", "views: 8, shift: 1"),
    ),
    "all views": (VIEWS, "'views: 9'", ("name: stored", "name: stored, views: 9")),
    "few views": (
        VIEWS.replace("shift: 1", "rotate: 5"),
        "'data.augment.views: 4' with 'views: 4'",
        ("rotate: 5}", "rotate: 5, views: 4}", "name: stored", "name: stored, views: 4"),
    ),
    "live knowledge for many views": (VIEWS, "'knowledge: live'", ("knowledge: {name: stored}", "knowledge: live")),
    "knowledge that takes any channels": (NARROW, "'attention'", ("transfer: fsp", "transfer: attention")),
    "a step": (
        START.replace("transfer: fsp", "transfer: {name: dense, anchor: end}"),
        "add 'step'",
        ("anchor: end", "anchor: end, step: 1"),
    ),
    "both forms of noise": (
        START.replace("name: digits", "name: tcifar10, distortion: noise_calibrated"),
        "give both",
        ("noise_calibrated", "noise_calibrated, noise_sigma: 5"),
    ),
    "a teacher's file": (
        START.replace("    stages: [{name: task, steps: 4, lr: 0.05, task: labels}]\n", ""),
        "'weights' (a file)",
        ("  teacher:\n", "  teacher:\n    weights: teacher.safetensors\n"),
    ),
    "a file in place of a library's own": (
        OTHER.replace("{width: 0.5}", "{checkpoint_path: x}", 1).replace("name: resnet8", "name: timm:resnet10t", 1),
        "'weights: FILE'",
        (", options: {checkpoint_path: x}}", "}\n    weights: timm.safetensors"),
    ),
    "a square size": (
        START.replace("batch: 16", "batch: 16, augment: {resized_crop: true}").replace(
            "name: digits", "name: pictures, hold_out: 4"
        ),
        "set 'size'",
        ("hold_out: 4", "hold_out: 4, size: 8"),
    ),
    "images held out": (
        START.replace("name: digits", "name: pictures"),
        "'hold_out'",
        ("name: pictures", "name: pictures, hold_out: 4"),
    ),
}


@pytest.fixture
def here(here: Path) -> Path:
    """A working directory with a teacher's weights and a set of pictures."""
    from PIL import Image

    for label in "ab":
        Path("pictures/train", label).mkdir(parents=True)
        for number in range(6):
            Image.new("L", (8, 8), 20 * number).save(f"pictures/train/{label}/{number}.png")
    save_weights(create("resnet8", 10, 1, width=0.5).state_dict(), "teacher.safetensors")
    return here


def checked(text: str, **options: object) -> None:
    """What ``flowstill check`` does."""
    Path("r.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe("r.yaml", **options)
    facts = find_facts(recipe.data)
    stores = any(stage.stores for job in recipe.jobs.values() for stage in job.stages)
    check(recipe, facts.shape, facts.classes, images=open_data(recipe.data).rows if stores else None)


def test_the_recipe_itself_is_right(here: Path) -> None:
    checked(START)


@pytest.mark.parametrize("case", PROPOSALS)
def test_suggestions_in_messages_are_accepted(here: Path, case: str) -> None:
    wrong, proposal, edits = PROPOSALS[case]
    with pytest.raises(FlowstillError) as caught:
        checked(wrong)
    assert proposal in str(caught.value)
    if "timm.safetensors" in edits[-1]:
        save_weights(create("timm:resnet10t", 10, 1).state_dict(), "timm.safetensors")
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        assert old in wrong
        wrong = wrong.replace(old, new)
    checked(wrong)


@pytest.mark.parametrize("change", ["foo", "=3"])
def test_the_example_of_a_change_works(here: Path, change: str) -> None:
    with pytest.raises(FlowstillError, match=r"such as data\.batch=64"):
        checked(START, set=[change])
    checked(START, set=["data.batch=64"])


def test_a_function_in_a_file_is_named_as_suggested(here: Path) -> None:
    Path("nets.py").write_text(
        "from torch import nn\ndef FUNCTION(num_classes):\n    return nn.Linear(3, num_classes)\n"
    )
    for given in ("nets.py", Path("nets.py")):
        with pytest.raises(FlowstillError, match=r"write 'nets\.py:FUNCTION'"):
            create(given)
    assert create("nets.py:FUNCTION", 4)(torch.zeros(1, 3)).shape == (1, 4)
