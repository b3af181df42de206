"""The files of stored knowledge: what is read back, what is missing, what is refused, and when their names change."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import flowstill as fs
from flowstill.data import Augment, open_data
from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.engine.stored import Store, digest_of, store_name
from flowstill.engine.teacher import Teacher
from flowstill.recipes.storage import TargetLayout
from support.stored_recipes import CROPS


def store(path, *, shapes=((3,),), dtype="fp32", cells=10, single=True) -> Store:
    return Store(path / "store", TargetLayout(shapes, (torch.float32,) * len(shapes), single), dtype, cells)


def test_a_number_beyond_half_precision_is_refused(tmp_path):
    half = store(tmp_path, dtype="fp16")
    with pytest.raises(fs.RunError, match=r"reaches 7\.1e\+04, but fp16 ends at 65504\. Store it with 'dtype: fp32'"):
        half.write(np.array([1]), np.array([[0, -71000, 1]], np.float32))
    assert half.missing(np.array([1])).tolist() == [0]
    lost = np.array([[0, np.inf, np.nan]], np.float32)  # the teacher's own, which live knowledge has too
    half.write(np.array([1]), lost)
    torch.testing.assert_close(half.read(np.array([1]), torch.device("cpu")), torch.from_numpy(lost), equal_nan=True)


def test_a_store_returns_what_was_written_and_reports_missing_cells(tmp_path):
    kept = store(tmp_path, shapes=((2, 2), (3,)), single=False)
    target = torch.arange(8.0).view(2, 2, 2), -torch.arange(6.0).view(2, 3)
    cells = np.array([7, 2, 7, 5])
    assert kept.missing(cells).tolist() == [0, 1, 3]
    kept.write(np.array([7, 2]), kept.layout.flat(target).numpy())
    assert kept.missing(cells).tolist() == [3]
    again = store(tmp_path, shapes=((2, 2), (3,)), single=False)  # another process
    for part, whole in zip(again.read(np.array([2, 7, 2]), torch.device("cpu")), target, strict=True):
        assert part.equal(whole[[1, 0, 1]])
    assert again.missing(cells).tolist() == [3]


def test_cells_damaged_by_a_power_cut_count_as_missing(tmp_path):
    kept = store(tmp_path)
    kept.write(np.array([1, 4]), np.ones((2, 3), np.float32))
    with (tmp_path / "store").open("r+b") as file:
        file.seek(4 * 12)
        file.write(b"\0\0\0\0")
    assert store(tmp_path).missing(np.array([1, 4])).tolist() == [1]


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    kept = store(tmp_path)

    class Full:
        def seek(self, place):
            pass

        def write(self, data):
            raise OSError(28, "No space left on device")

    kept._files = (Full(), Full())
    with pytest.raises(fs.RunError, match=r"Cannot store knowledge in .*: No space left on device\. Make room there"):
        kept.write(np.array([1]), np.ones((1, 3), np.float32))


def test_maps_come_back_in_the_teachers_number_format(tmp_path):
    maps = torch.randn(2, 3, 2, 2).bfloat16()
    layout = TargetLayout.of((maps,))
    assert layout.numbers == 12
    (back,) = layout.target(layout.flat((maps,)))
    assert back.dtype == torch.bfloat16
    assert back.equal(maps)


@pytest.mark.parametrize("target", [{"a": torch.ones(2)}, torch.ones(2, dtype=torch.int64), [torch.ones(2)], 3.0])
def test_only_float_tensors_can_be_stored(target):
    with pytest.raises(fs.RecipeError, match="expected a float tensor to store, or a tuple of them"):
        TargetLayout.of(target)


def test_the_name_of_a_store_depends_on_everything_that_decides_its_content():
    data = open_data(CROPS)
    torch.manual_seed(0)
    network = fs.create("resnet8", num_classes=10, in_channels=1, width=0.25).eval()
    pairs = fs.pair_sections(network, network, (1, 1, 8, 8))
    fabric = make_fabric("cpu", 1, Precision())

    def name(*, knowledge=fs.FSP(), loss=None, other=network, data=data, dtype="fp32", precision=Precision()) -> str:  # noqa: B008
        digest = digest_of(Teacher(fabric, other))
        return store_name(digest, knowledge, loss or knowledge.build(pairs), data, dtype, precision)

    moved = fs.create("resnet8", num_classes=10, in_channels=1, width=0.25).eval()
    moved.load_state_dict(network.state_dict())
    assert name(other=moved) == name()
    moved.bn1.running_mean[0] += 1e-6
    renormalised = open_data(CROPS)
    renormalised.mean = (renormalised.mean[0] + 1e-6,)
    rescaled = open_data(CROPS)
    rescaled.std = (rescaled.std[0] + 1e-6,)
    other_class, asks_for_logits = fs.FSP().build(pairs), fs.FSP().build(pairs)
    other_class.__class__ = type("Other", (type(other_class),), {})
    asks_for_logits.teacher_logits = True
    activated = fs.create("resnet8", num_classes=10, in_channels=1, width=0.25).eval()
    activated.load_state_dict(network.state_dict())
    activated.layer1[0].relu = torch.nn.GELU()
    repainted = open_data(CROPS)
    repainted._images = SimpleNamespace(fingerprint="others")
    names = [
        name(),
        name(other=moved),
        name(other=fs.create("resnet8", num_classes=10, in_channels=1, width=0.25)),
        name(knowledge=fs.FSP(sections=(0,))),
        name(knowledge=fs.FSP(flows="inside")),
        name(knowledge=fs.SVD()),
        name(knowledge=fs.SVD(rank=2)),
        name(loss=fs.FSP().build(pairs[:2])),
        name(loss=other_class),
        name(loss=asks_for_logits),
        name(other=activated),
        name(data=renormalised),
        name(data=rescaled),
        name(data=repainted),
        name(data=open_data(CROPS, seed=1)),
        name(data=open_data(replace(CROPS, augment=Augment(crop=1)))),
        name(data=open_data(replace(CROPS, augment=Augment(crop=1, flip=True, views=3)))),
        name(data=open_data(replace(CROPS, augment=Augment(crop=1, flip=True, views=4)))),
        name(dtype="fp16"),
        name(precision=Precision("bf16")),
        name(precision=Precision("32", "channels_last")),
    ]
    assert len(set(names)) == len(names)
    assert name(data=open_data(replace(CROPS, batch=7, labels=None))) == name()  # neither changes what is known
