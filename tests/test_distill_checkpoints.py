"""Teachers from whatever holds their weights: other people's checkpoints, or the user's own function."""

import argparse

import pytest
import torch

import flowstill as fs
from flowstill.cli import main
from flowstill.errors import RecipeError
from flowstill.nets import read_weights
from flowstill.recipes.distillation import distillation
from flowstill.recipes.load import load_recipe
from support.compared_runs import PLAIN
from support.distilling import DATA, SHORT, network

MINE = """
import torch
import flowstill as fs
from pathlib import Path

def make(num_classes, in_channels):
    network = fs.create("resnet8", num_classes, in_channels)
    network.load_state_dict(torch.load(Path(__file__).with_name("w.pth")))
    return network
"""


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    torch.save(network().state_dict(), tmp_path / "w.pth")
    return f"{tmp_path / 'mine.py'}:make"


def test_a_function_that_loads_its_weights_teaches(mine, tmp_path, capsys):
    command = ["distill", "--teacher", mine, "--student", "resnet8", "--data", "digits", "--scale", str(SHORT)]
    command += ["--device", "cpu", "--trust-code", "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert "has no trained weights" in (error := capsys.readouterr().err)
    assert "--teacher-is-trained" in error
    assert main([*command, "--teacher-is-trained"]) == 0
    assert same(read_weights(tmp_path / "run" / "teacher.safetensors"), network().state_dict())
    kept = load_recipe(tmp_path / "run" / "recipe.yaml", trust_code=True)
    assert (kept.jobs["teacher"].start, kept.jobs["teacher"].stages) == ("trained", ())
    assert main([*command, "--teacher-is-trained", "--resume"]) == 0


def test_a_trained_teacher_takes_no_file(mine, tmp_path):
    with pytest.raises(RecipeError, match=r"teacher_is_trained=True says .* Give one of them"):
        distillation(mine, "resnet8", DATA, teacher_is_trained=True, teacher_weights=tmp_path / "w.pth")


def test_one_network_of_several_teaches_and_the_run_continues(tmp_path):
    """Under a prefix, its head under another name, beside the arguments of the script that trained it."""
    names = {name.replace("fc.", "linear."): tensor for name, tensor in network().state_dict().items()}
    content = {"teacher": {f"module.{name}": tensor for name, tensor in names.items()}}
    content |= {"student": network(2).state_dict(), "args": argparse.Namespace(lr=0.1)}
    file = tmp_path / "w.pth"
    torch.save(content, file)
    given = {"teacher": "resnet8", "student": "resnet8", "data": DATA, "out": tmp_path / "run", "scale": SHORT}
    for resume in (False, True):
        run = fs.distill(**given, teacher_weights=f"{file}#teacher", resume=resume, **PLAIN)
    assert same(read_weights(run.path / "teacher.safetensors"), network().state_dict())
    content["teacher"]["module.conv1.weight"] += 1
    torch.save(content, file)
    with pytest.raises(fs.FlowstillError, match=r"w.pth#teacher' holds other weights now"):
        fs.distill(**given, teacher_weights=f"{file}#teacher", resume=True, **PLAIN)
    torch.save({"teacher": fs.create("resnet14", 10, 1).state_dict()}, file)
    with pytest.raises(fs.FlowstillError, match=r"holds other weights now|does not fit"):
        fs.distill(**given, teacher_weights=f"{file}#teacher", resume=True, **PLAIN)
