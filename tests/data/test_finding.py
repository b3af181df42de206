"""Where data sets are found: under the root, on the hub, and the error if nothing is found."""

import os
import subprocess
import sys

import pytest

from flowstill.data import NAMED, Augment, Data, Facts, data_facts, find_source, open_data
from flowstill.errors import DataError
from support.picture_files import TWO_CLASSES, seen_in_testing, write_folder, write_parquet


def test_facts_known_from_a_name_without_data():
    assert {name: data_facts(name) for name in NAMED} == {
        "digits": Facts((1, 8, 8), 10),
        "mnist": Facts((1, 28, 28), 10),
        "cifar10": Facts((3, 32, 32), 10),
        "cifar100": Facts((3, 32, 32), 100),
        "tcifar10": Facts((3, 32, 32), 10),
        "tcifar100": Facts((3, 32, 32), 100),
        "cub200": Facts((3, 224, 224), 200),
        "imagenet": Facts((3, 224, 224), 1000),
    }
    assert data_facts(Data("digits", size=16, channels=3)) == Facts((3, 16, 16), 10)
    assert data_facts("birds") is None


def test_known_sets_are_found_under_the_root_or_in_it(tmp_path):
    for place in (tmp_path / "a" / "mnist", tmp_path / "b"):
        write_parquet(place / "train.parquet", list(range(10)) * 2, size=(28, 28), mode="L")
        write_parquet(place / "test.parquet", list(range(10)), first=50, size=(28, 28), mode="L")
    for root in ("a", "b"):
        data = open_data(Data("mnist", root=str(tmp_path / root)))
        assert (data.shape, data.train_size, data.test_size) == ((1, 28, 28), 20, 10)
    bigger = open_data(Data("mnist", root=str(tmp_path / "b"), size=32, channels=3))
    assert bigger.shape == (3, 32, 32)


def test_a_set_without_test_images_can_hold_some_out(tmp_path):
    write_parquet(tmp_path / "p" / "train.parquet", TWO_CLASSES)
    write_folder(tmp_path / "f" / "train", TWO_CLASSES, ["wolf", "ape"])
    for place in ("p", "f"):
        data = open_data(Data(str(tmp_path / place), hold_out=2))
        assert (data.train_size, data.test_size) == (4, 2)
        assert sorted(seen_in_testing(data)[1]) == [0, 1]


def test_imagenet_is_tested_on_its_validation_images(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / "imagenet" / f"{split}-00000-of-00001.parquet").parent.mkdir(exist_ok=True)
        write_parquet(tmp_path / "imagenet" / f"{split}-00000-of-00001.parquet", [0])
    source = find_source(Data("imagenet", root=str(tmp_path)))
    assert source.test[0].name.startswith("validation")
    assert find_source(Data(str(tmp_path / "imagenet"))).test[0].name.startswith("test")


def test_names_that_are_not_local_are_looked_up_on_the_hub():
    assert [find_source(Data(name)).place for name in ("cifar10", "cub200", "owner/name", "beans")] == [
        "uoft-cs/cifar10",
        "bentrevett/caltech-ucsd-birds-200-2011",
        "owner/name",
        "beans",
    ]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Data("cifra10"), ["'cifra10'", "Did you mean 'cifar10'?", "owner/name"]),
        (Data("./brids"), ["'brids' does not exist", "Did you mean 'birds'?"]),
        (Data("cifar10", root="dta"), ["'dta' does not exist", "Did you mean 'data'?"]),
        (Data("no/such/folder", root="data"), ["'data/no/such/folder' does not exist", "'data/no' is missing"]),
        (
            Data("cifar10", root="birds"),
            ["'birds' holds no data set 'cifar10'", "train.parquet", "It holds notes.txt, two/."],
        ),
        (Data("birds/notes.txt"), ["is a file", "'birds'"]),
        (Data("half"), ["no test split", "test.parquet", "hold_out"]),
        (Data("classes"), ["no test split", "test/<class>/", "hold_out"]),
        (Data("birds/two"), ["several data sets", "'a' and 'b'"]),
    ],
)
def test_a_missing_set_is_named_with_the_fix(tmp_path, monkeypatch, spec, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "notes.txt").write_text("none")
    write_parquet(tmp_path / "half" / "train.parquet", TWO_CLASSES)
    write_folder(tmp_path / "classes" / "train", TWO_CLASSES, ["wolf", "ape"])
    for name in ("a", "b"):
        write_parquet(tmp_path / "birds" / "two" / name / "train.parquet", [0])
    with pytest.raises(DataError) as caught:
        open_data(spec)
    for word in words:
        assert word in str(caught.value)


ALONE = """
import sys
from pathlib import Path
from flowstill.data import READERS, Data, Source, open_data
from flowstill.errors import DataError
print(open_data(Data("set")).train_size, sorted(p.name for p in Path().rglob("*") if p.is_file()))
train, test = READERS["hub"].read(Source("hub", "set", "./set"))
print(len(train), test.labels.tolist(), train.class_names, test.where(1))
for name in ("cifar10", "owner/name"):
    try:
        open_data(Data(name))
    except DataError as error:
        print(error)
"""


def test_in_a_separate_process_without_a_network(tmp_path):
    # The hub's client reads a local folder by the code that reads a downloaded one.
    write_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", TWO_CLASSES)
    write_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", [1, 0, 1], first=50)
    (tmp_path / "tmp").mkdir()
    places = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        env={**os.environ, **places, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    opened, local, cifar, other = done.stdout.splitlines()
    # nothing is left on disk, and nothing is said
    assert opened == "6 ['test-00000-of-00001.parquet', 'train-00000-of-00001.parquet']"
    assert done.stderr == ""
    assert local == "6 [1, 0, 1] None row 1 of split 'test' of './set'"
    assert "'uoft-cs/cifar10' could not be downloaded from the Hugging Face hub" in cifar
    assert "HF_HUB_OFFLINE" in cifar
    assert "Give a local copy with data_root='DIR', as DIR/cifar10/{train,test}.parquet." in cifar
    assert "'owner/name'" in other


def test_importing_the_package_is_light():
    code = "import sys, flowstill.data; print([m for m in ('torch', 'datasets', 'sklearn', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert isinstance(Augment(crop=1), Augment)
