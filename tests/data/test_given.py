"""What Python takes as a data set: paths and their text alike; images in memory are refused with a clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder

import flowstill as fs
from flowstill.data import find_source
from flowstill.recipes.distillation import distillation


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a few pictures of two classes."""
    for split in ("train", "test"):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(2):
                Image.new("L", (8, 8), 20 * number).save(tmp_path / split / label / f"{number}.png")
    return tmp_path


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))


def test_path_objects_equal_their_text(pictures: Path) -> None:
    recipe = distillation(network(), network(), pictures)
    assert recipe.data.name == str(pictures)
    assert find_source(recipe.data).place == str(pictures)
    assert fs.Data(pictures, root=pictures) == fs.Data(str(pictures), root=str(pictures))
    recipe = distillation(network(), network(), "digits", data_root=pictures)
    assert recipe.data.root == str(pictures)
    job = fs.Job(Path("nets.py:make"), weights=Path("w.safetensors"))
    assert (job.network.name, job.weights) == ("nets.py:make", "w.safetensors")
    assert fs.Recipe("r", fs.Data("digits"), {"a": fs.Job("resnet8")}, uses=[pictures / "m.py"]).uses == (
        str(pictures / "m.py"),
    )


def images() -> TensorDataset:
    return TensorDataset(torch.rand(4, 1, 8, 8), torch.arange(4) % 2)


GIVEN = {
    "a Dataset": images,
    "a DataLoader": lambda: DataLoader(images()),
    "a tensor": lambda: torch.rand(4, 1, 8, 8),
    "a list": lambda: [(torch.rand(1, 8, 8), 0)],
    "nothing": lambda: None,
    "a set of the datasets library": lambda: __import__("datasets").Dataset.from_dict({"label": [0, 1]}),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_images_in_memory_are_refused_with_the_supported_forms(kind: str) -> None:
    with pytest.raises(fs.DataError, match=r"folder of classes \(train/CLASS/\*\.jpg.*parquet files.*owner/name"):
        distillation(network(), network(), GIVEN[kind]())


@pytest.mark.parametrize("make", [lambda given: fs.Data(given), lambda given: fs.Recipe("r", given)])
def test_they_are_refused_in_recipes_too(make) -> None:
    with pytest.raises(fs.RecipeError, match=r"Received: a TensorDataset\. Images are read from a folder of classes"):
        make(images())


def test_an_image_folder_names_the_folder_to_give(pictures: Path) -> None:
    for given in (ImageFolder(pictures / "train"), ImageFolder(pictures)):
        with pytest.raises(fs.DataError) as caught:
            distillation(network(), network(), given)
        assert f"Give its folder instead: {str(pictures)!r}." in str(caught.value)
    assert distillation(network(), network(), str(pictures)).data.name == str(pictures)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_file_given_as_a_network_asks_for_the_function(role: str) -> None:
    given = {"teacher": network(), "student": network(), role: Path("nets.py")}
    with pytest.raises(fs.RecipeError, match=rf"The {role} 'nets\.py' is a file.*write 'nets\.py:FUNCTION'"):
        distillation(**given, data="digits")
