"""Readers of layouts from outside the package."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import flowstill as fs
from flowstill.data import READERS, Data, Reader, find_source, open_data
from flowstill.data.splits import array_split
from flowstill.errors import DataError
from support.archive_files import write_cifar


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def write_list(folder: Path, count: int = 24) -> None:
    """A layout that no built-in reader knows: files in one folder, and a list of their classes."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        Image.fromarray(picture(number)).save(folder / f"{number}.png")
        lines.append(f"{number}.png {('wolf', 'ape')[number % 2]}")
    (folder / "list.txt").write_text("\n".join(lines))


def read_list(folder: Path):
    pairs = [tuple(line.split()) for line in (folder / "list.txt").read_text().splitlines()]
    return pairs[:-8], pairs[-8:]


def is_list(folder: Path) -> bool:
    return (folder / "list.txt").is_file()


def pixels(data) -> torch.Tensor:
    """The training images in the order of their rows."""
    (batch,) = data.train_batches("all", batch=data.train_size, steps=1)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    return (255 * (batch.images[batch.index.argsort()] * std + mean)).round().to(torch.uint8)


def error(spec: Data) -> str:
    with pytest.raises(DataError) as caught:
        open_data(spec)
    return str(caught.value)


def test_a_reader_from_outside_recognises_its_folder_and_trains(tmp_path, monkeypatch):
    fs.register_reader("list", about="list.txt", recognises=is_list)(read_list)
    write_list(tmp_path / "data" / "zoo")
    for spec in (
        Data(str(tmp_path / "data" / "zoo")),
        Data("zoo", root=str(tmp_path / "data")),
        Data("zoo", root=str(tmp_path / "data"), reader="list"),
    ):
        assert find_source(spec).reader == "list"
        data = open_data(spec)
        assert (data.shape, data.classes, data.train_size, data.test_size) == ((3, 8, 8), ("ape", "wolf"), 16, 8)
    assert pixels(data).equal(torch.from_numpy(np.stack([picture(n) for n in range(16)])).permute(0, 3, 1, 2))
    (batch,) = data.train_batches("all", batch=16, steps=1)
    assert batch.labels[batch.index.argsort()].tolist() == [1, 0] * 8

    stage = fs.Stage(name="train", steps=3, lr=0.1, task="labels")
    job = fs.Job(network="resnet8", stages=(stage,))
    spec = Data(str(tmp_path / "data" / "zoo"), batch=4, reader="list")
    monkeypatch.chdir(tmp_path)
    fs.train(fs.Recipe("zoo", spec, {"net": job}), out=tmp_path / "run")
    assert "reader: list" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert len(fs.evaluate(tmp_path / "run")) > 0


def test_a_reader_in_its_own_module(tmp_path):
    """In a process of its own, where nothing else has imported the readers."""
    write_list(tmp_path / "zoo")
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
        import flowstill

        @flowstill.register_reader("list", recognises=lambda folder: (folder / "list.txt").is_file())
        def read(folder):
            pairs = [tuple(line.split()) for line in (folder / "list.txt").read_text().splitlines()]
            return pairs, None
        """)
    )
    code = "import mine; from flowstill.data import Data, open_data; print(open_data(Data('zoo', hold_out=4)).classes)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "('ape', 'wolf')"


@pytest.mark.parametrize("labels", [[0, 1, 0, 1], ["a", "b", "a", "b"], [np.int64(0), 1, 0, 1]])
def test_images_as_arrays_pillow_images_and_paths(tmp_path, labels):
    Image.fromarray(picture(2)).save(tmp_path / "2.png")
    images = [picture(0), Image.fromarray(picture(1)), tmp_path / "2.png", "2.png"]
    fs.register_reader("mixed")(lambda folder: (list(zip(images, labels, strict=True)), None))
    data = open_data(Data(str(tmp_path), hold_out=2, reader="mixed"))
    assert (data.train_size, data.test_size) == (2, 2)
    assert data.classes == (("a", "b") if labels[0] == "a" else ("0", "1"))


def test_grey_arrays_and_splits(tmp_path):
    grey = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8)

    @fs.register_reader("grey")
    def read(folder):
        made = array_split(grey, torch.tensor([0, 1]), ("a", "b"), "grey", (("grey", 2),))
        return [(grey[0], 0), (grey[1], 1)], made

    data = open_data(Data(str(tmp_path), reader="grey"))
    assert data.shape == (1, 8, 8)
    assert pixels(data)[:, 0].equal(torch.from_numpy(grey))


def test_a_reader_is_asked_before_the_built_in_ones(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.fromarray(picture(0)).save(tmp_path / split / "cat" / "0.png")
    assert find_source(Data(str(tmp_path))).reader == "folder"
    fs.register_reader("all", recognises=lambda folder: True)(read_list)
    assert find_source(Data(str(tmp_path))).reader == "all"
    assert find_source(Data(str(tmp_path), reader="folder")).reader == "folder"


def test_a_reader_can_be_a_class_with_its_own_folders(tmp_path):
    @fs.register_reader("deep")
    class Deep(Reader):
        """Lists in a folder of the archive."""

        about = "list.txt"

        def folders(self, name):
            return ("archive/v1",) if name == "mnist" else ()

        def find(self, folder, wanted):
            return self.source(folder, wanted) if is_list(folder) else None

    write_list(tmp_path / "archive" / "v1")
    source = find_source(Data("mnist", root=str(tmp_path)))
    assert (source.reader, source.place) == ("deep", str(tmp_path / "archive" / "v1"))


ONE = [(picture(0), 0), (picture(1), 1)]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (ONE, r"expected two lists \(train, test\). Received: a list"),
        ((ONE, None), "Add test images to what reader 'odd' returns, or set 'hold_out'"),
        ((None, ONE), r"expected a list of \(image, label\) as train. Received: nothing"),
        ((ONE, [picture(0)]), r"expected \(image, label\) as item 0 of test"),
        (([(picture(0), 1.5)], ONE), r"expected \(image, label\) as item 0 of train"),
        (([(picture(0), "a")], ONE), "some labels are numbers, some are names"),
        (([(picture(0), "zebra")], [(picture(0), "zebre")]), "has class 'zebre'.*Did you mean 'zebra'?"),
        (([(picture(0).astype(float), 0)], ONE), r"Received: an array of float64, \(8, 8, 3\)"),
        (([("gone.png", 0)], ONE[:1]), "gone.png' is not a readable image"),
        (([], ONE), "holds no images"),
        (([(picture(0), 0), (picture(1), 7)], ONE), "row 1 of the train split.* has label 7"),
    ],
)
def test_what_a_reader_returns_is_checked(tmp_path, found, said):
    fs.register_reader("odd")(lambda folder: found)
    assert re.search(said, text := error(Data(str(tmp_path), reader="odd"))), text


def test_an_error_in_a_reader_names_its_line(tmp_path):
    @fs.register_reader("broken")
    def read(folder):
        raise KeyError("column")

    text = error(Data(str(tmp_path), reader="broken"))
    assert "Data reader 'broken' failed" in text
    assert f"{__file__}:" in text
    assert "KeyError: 'column'" in text


def test_invalid_readers_are_named(tmp_path):
    assert "Unknown data reader 'parqet'. Did you mean 'parquet'?" in error(Data(str(tmp_path), reader="parqet"))
    text = error(Data(str(tmp_path), reader="folder"))
    assert f"{str(tmp_path)!r} does not have the layout of reader 'folder': train/<class>/ with images" in text
    assert "Reader 'folder' reads a folder" in error(Data("cifar10", reader="folder"))
    assert "does not exist" in error(Data("birds", reader="folder"))
    with pytest.raises(DataError, match="Expected a function read"):
        fs.register_reader("no")(3)
    with pytest.raises(DataError, match="already a data reader 'folder'"):
        fs.register_reader("folder")(read_list)
    assert sorted(READERS) == ["cifar", "cub", "digits", "folder", "hub", "idx", "parquet"]


def test_built_in_readers_recognise_unnamed_folders_and_are_called_by_name(tmp_path):
    write_cifar(tmp_path / "any", 10, fine=False)
    assert find_source(Data(str(tmp_path / "any"))).reader == "cifar"
    assert open_data(Data(str(tmp_path / "any"), reader="cifar")).train_size == 10
    assert find_source(Data("digits", root="nowhere")).reader == "digits"
    assert find_source(Data("owner/name", reader="hub")).place == "owner/name"
