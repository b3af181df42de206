import io
import math
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flowstill.data import Augment, Data, open_data
from flowstill.errors import DataError


def png(number: int, size: tuple[int, int] = (8, 8), mode: str = "RGB", kind: str = "PNG") -> bytes:
    values = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def write(file: Path, images: list[bytes], labels: list[int | None], features: datasets.Features | None = None) -> None:
    rows = [{"bytes": image, "path": None} for image in images]
    if features is None:
        pq.write_table(pa.table({"img": rows, "label": pa.array(labels, pa.int64())}), file, row_group_size=2)
    else:
        table = pa.table({"img": rows, "label": pa.array(labels, pa.int64())}, schema=features.arrow_schema)
        pq.write_table(table, file)


def parquet(
    folder: Path, *, train=None, test=None, labels=(0, 1, 0, 1), test_labels=(0, 1), names=(None, None)
) -> None:
    """A good set of four and two images, but for what the arguments say."""
    for split, images, marks, declared in (
        ("train", train or [png(i) for i in range(len(labels))], labels, names[0]),
        ("test", test or [png(9 + i) for i in range(len(test_labels))], test_labels, names[1]),
    ):
        features = None
        if declared:
            features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(declared))})
        write(folder / f"{split}.parquet", images, list(marks), features)


def folder(root: Path, files: dict[str, bytes | None]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)


def error(spec: Data) -> str:
    with pytest.raises(DataError) as caught:
        open_data(spec)
    text = str(caught.value)
    assert "\n" not in text
    return text


GOOD = {"train/a/0.png": png(0), "train/b/0.png": png(1), "test/a/0.png": png(2), "test/b/0.png": png(3)}


def test_valid_sets_load(tmp_path):
    (tmp_path / "p").mkdir()
    parquet(tmp_path / "p")
    folder(tmp_path / "f", GOOD)
    assert open_data(Data(str(tmp_path / "p"))).train_size == 4
    assert open_data(Data(str(tmp_path / "f"))).train_size == 2


@pytest.mark.parametrize("broken", [b"no image", png(2)[:60], b"", png(2, kind="JPEG")[:200]])
def test_a_corrupt_image_is_named_by_its_row(tmp_path, broken):
    parquet(tmp_path, train=[png(0), png(1), broken, png(3)])
    text = error(Data(str(tmp_path)))
    assert f"row 2 of {str(tmp_path / 'train.parquet')!r} is not a readable image" in text
    assert "Fix or remove it" in text


def test_a_corrupt_image_is_named_by_its_file_even_in_a_shard(tmp_path):
    folder(tmp_path / "f", {**GOOD, "train/b/1.jpg": b"text"})
    assert f"{str(tmp_path / 'f' / 'train' / 'b' / '1.jpg')!r} is not a readable image" in error(
        Data(str(tmp_path / "f"))
    )
    for shard in range(2):
        images = [png(0), png(1) if shard == 0 else b"text"]
        write(tmp_path / f"train-{shard}-of-2.parquet", images, [0, 1])
    write(tmp_path / "test-0-of-1.parquet", [png(5)], [0])
    assert f"row 1 of {str(tmp_path / 'train-1-of-2.parquet')!r}" in error(Data(str(tmp_path)))


def test_a_corrupt_image_of_a_streamed_set_is_the_same_error(tmp_path):
    parquet(tmp_path, train=[png(0), png(1), png(2), b"text"])
    for workers in (0, 1):
        text = error(Data(str(tmp_path), size=8, augment=Augment(resized_crop=True), workers=workers))
        assert f"row 3 of {str(tmp_path / 'train.parquet')!r} is not a readable image" in text


def test_an_empty_class(tmp_path):
    folder(tmp_path / "f", {**GOOD, "train/zebra": None, "test/zebra": None})
    assert "Class 'zebra' of" in (text := error(Data(str(tmp_path / "f"))))
    assert "has no training image" in text
    parquet(tmp_path, labels=(0, 2, 0, 2), test_labels=(0, 2))
    assert "Class '1' of" in error(Data(str(tmp_path)))
    parquet(tmp_path, names=(("cat", "dog", "eel"), ("cat", "dog", "eel")))
    assert "Class 'eel' of" in error(Data(str(tmp_path)))


@pytest.mark.parametrize(
    ("label", "words"), [(2, "has label 2, out of range: there are 2 classes, 0 to 1"), (-1, "has label -1")]
)
def test_a_label_out_of_range_is_named_by_its_row(tmp_path, label, words):
    parquet(tmp_path, labels=(0, 1, 0, label), names=(("cat", "dog"), ("cat", "dog")))
    text = error(Data(str(tmp_path)))
    assert f"row 3 of {str(tmp_path / 'train.parquet')!r} {words}" in text


def test_a_stray_label_without_declared_classes(tmp_path):
    parquet(tmp_path, labels=(0, 1, 10**12, 1))
    text = error(Data(str(tmp_path)))
    assert f"row 2 of {str(tmp_path / 'train.parquet')!r} has label 1000000000000, out of range" in text
    parquet(tmp_path, test_labels=(0, -1))
    text = error(Data(str(tmp_path)))
    assert f"row 1 of {str(tmp_path / 'test.parquet')!r} has label -1" in text
    assert "hold_out" in text


def test_a_missing_label_is_named_by_its_row(tmp_path):
    parquet(tmp_path, labels=(0, 1, None, 1))
    assert f"row 2 of {str(tmp_path / 'train.parquet')!r} has no label" in error(Data(str(tmp_path)))


def test_train_and_test_with_different_classes(tmp_path):
    folder(tmp_path / "f", {**GOOD, "test/zebre/0.png": png(4), "train/zebra/0.png": png(5)})
    text = error(Data(str(tmp_path / "f")))
    assert "Train and test have different classes" in text
    assert "'zebre'" in text
    assert "Did you mean 'zebra'?" in text
    parquet(tmp_path, test_labels=(0, 2))
    text = error(Data(str(tmp_path)))
    assert "Train and test have different classes" in text
    assert f"row 1 of {str(tmp_path / 'test.parquet')!r} has label 2" in text
    parquet(tmp_path, names=(("cat", "dog"), ("dog", "cat")))
    assert "class 0 is 'cat' in" in (text := error(Data(str(tmp_path))))
    assert "'dog' in" in text
    parquet(tmp_path, labels=(0, 0, 0, 0), names=(("cat", "dog"), ("cat", "dog")))
    text = error(Data(str(tmp_path)))
    assert "Train and test have different classes" in text
    assert "class 'dog' (1), of which there is no training image" in text


def test_images_of_different_sizes_need_a_size(tmp_path):
    parquet(tmp_path, train=[png(0), png(1), png(2, (9, 8)), png(3)])
    text = error(Data(str(tmp_path)))
    assert f"row 2 of {str(tmp_path / 'train.parquet')!r} is 9x8 pixels, the first training image 8x8" in text
    assert "'size'" in text
    assert open_data(Data(str(tmp_path), size=8)).shape == (3, 8, 8)
    parquet(tmp_path, test=[png(0), png(1, (8, 9))])
    assert f"row 1 of {str(tmp_path / 'test.parquet')!r} is 8x9 pixels" in error(Data(str(tmp_path)))


def test_wrong_channels(tmp_path):
    parquet(tmp_path, train=[png(0), png(1), png(2, mode="L"), png(3)])
    text = error(Data(str(tmp_path)))
    assert f"row 2 of {str(tmp_path / 'train.parquet')!r} has 1 channel(s), the first training image 3" in text
    assert "'channels'" in text
    assert open_data(Data(str(tmp_path), channels=3)).shape == (3, 8, 8)
    assert open_data(Data(str(tmp_path), channels=1)).shape == (1, 8, 8)
    parquet(tmp_path, train=[png(i, mode="RGBA") for i in range(4)])
    assert "has channels RGBA" in error(Data(str(tmp_path)))
    parquet(tmp_path, train=[png(i, mode="I;16") if i == 1 else png(i, mode="L") for i in range(4)])
    assert "row 1 of" in (text := error(Data(str(tmp_path), channels=1)))
    assert "more than 8 bits" in text


def test_empty_sets(tmp_path):
    parquet(tmp_path, test_labels=())
    assert f"{str(tmp_path / 'test.parquet')!r} holds no images" in error(Data(str(tmp_path)))
    folder(tmp_path / "f", {"train/a": None, "test/a/0.png": png(0)})
    assert f"{str(tmp_path / 'f' / 'train')!r} holds no images" in error(Data(str(tmp_path / "f")))
    folder(tmp_path / "g", {"train/0.png": png(0), "test/0.png": png(0)})
    assert "has no folder for any class" in error(Data(str(tmp_path / "g")))


def test_a_file_that_is_not_parquet(tmp_path):
    parquet(tmp_path)
    (tmp_path / "test.parquet").write_bytes(b"PAR1 and then something else")
    assert f"{str(tmp_path / 'test.parquet')!r} is not a readable parquet file" in error(Data(str(tmp_path)))


def test_a_parquet_file_that_is_damaged_inside(tmp_path):
    parquet(tmp_path)
    content = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])
    assert f"{str(tmp_path / 'train.parquet')!r} cannot be read" in error(Data(str(tmp_path)))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": [0]}, "has no column of images"),
        ({"a": [{"bytes": png(0)}], "b": [{"bytes": png(0)}], "label": [0]}, "several columns of images, 'a' and 'b'"),
        ({"img": [{"bytes": png(0)}]}, "has no label column"),
        (
            {"img": [{"bytes": png(0)}], "age": [3], "kind": [0]},
            "several columns that may be the label, 'age' and 'kind'",
        ),
        ({"img": [{"bytes": png(0)}], "label": ["cat"], "id": [7]}, "Column 'label' of"),
    ],
)
def test_ambiguous_columns(tmp_path, columns, words):
    for split in ("train", "test"):
        pq.write_table(pa.table(columns), tmp_path / f"{split}.parquet")
    text = error(Data(str(tmp_path)))
    assert words in text
    assert "It has " in text


def test_one_column_of_bytes_and_one_of_numbers_need_no_names(tmp_path):
    for split in ("train", "test"):
        pq.write_table(
            pa.table({"x": [png(0), png(1)], "y": pa.array([0, 1], pa.uint8())}), tmp_path / f"{split}.parquet"
        )
    assert open_data(Data(str(tmp_path))).train_size == 2


@pytest.mark.parametrize("labels", [9, 1298])
def test_too_few_or_too_many_labels(labels):
    assert f"'labels' is {labels}, but 'digits' has 10 classes and 1297" in error(Data("digits", labels=labels))


def test_holding_out_too_much():
    assert "leaves no training image of class" in error(Data("digits", hold_out=1297))


def test_a_different_set_under_a_known_name(tmp_path):
    parquet(tmp_path, labels=tuple(range(10)), test_labels=tuple(range(10)))
    text = error(Data("cifar10", root=str(tmp_path)))
    assert "(3, 8, 8)" in text
    assert "(3, 32, 32)" in text
    parquet(tmp_path, names=(("cat", "dog"), ("cat", "dog")))
    assert "has 2 classes, not 10" in error(Data("cifar10", root=str(tmp_path)))


def test_random_areas_need_a_size(tmp_path):
    parquet(tmp_path)
    assert "set 'size'" in error(Data(str(tmp_path), augment=Augment(resized_crop=True)))
    assert math.prod(open_data(Data(str(tmp_path), size=8, augment=Augment(resized_crop=True))).shape) == 192
