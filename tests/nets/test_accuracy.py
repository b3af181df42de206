"""The accuracy that a checkpoint records."""

import argparse

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flowstill.nets import recorded_accuracy

STATE = nn.Linear(3, 2).state_dict()


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({}, None),
        ({"epoch": 90, "loss": 0.4, "train_acc": 99.0, "acc5": 99.0, "best_err1": 8.0, "best_epoch": 3}, None),
        ({"best_prec1": 91.78}, 91.78),
        ({"best_acc1": torch.tensor(75.5)}, 75.5),
        ({"best_acc": np.float64(91.25)}, 91.25),
        ({"best_acc": np.array([91.25])}, 91.25),
        ({"acc": 0.75}, 75.0),
        ({"accuracy": 1.0}, 100.0),
        ({"top1": 70}, 70.0),
        ({"Acc@1": 70.5}, 70.5),
        ({"bestAccuracy": 70.5}, 70.5),
        ({"val_acc": 70.5, "acc": 99.0}, 70.5),
        ({"val_acc": 70.5, "test_acc": 71.5}, 71.5),
        ({"best_acc": 91.5, "acc": 90.5}, 90.5),
        ({"best_acc": 91.5, "acc": float("nan")}, 91.5),
        ({"best_acc": 0}, None),
        ({"acc": True}, None),
        ({"acc": 1234.0}, None),
        ({"metric": 76.5, "args": argparse.Namespace(lr=0.1)}, 76.5),
        ({"metric": 0.7}, None),
        ({"metric": 7.0, "args": argparse.Namespace(eval_metric="loss")}, None),
        ({"metrics": {"train": {"acc": 99.0}, "test": {"acc1": 0.5}}}, 50.0),
        ({"results": {"val_top1": 60.5}}, 60.5),
        ({"optimizer": {"acc": 3.0}}, None),
        ({"callbacks": {"ModelCheckpoint{}": {"monitor": "val_acc", "best_model_score": torch.tensor(0.5)}}}, 50.0),
        ({"callbacks": {"ModelCheckpoint{}": {"monitor": "val_loss", "best_model_score": torch.tensor(0.5)}}}, None),
    ],
)
def test_accuracy_beside_the_weights(beside, expected, tmp_path):
    torch.save({"state_dict": STATE, **beside}, tmp_path / "w.pth")
    found = recorded_accuracy(tmp_path / "w.pth")
    assert found == (None if expected is None else pytest.approx(expected))


def test_accuracy_in_the_metadata_of_safetensors(tmp_path):
    save_file(STATE, tmp_path / "w", metadata={"format": "pt", "val_acc": "91.5%"})
    assert recorded_accuracy(tmp_path / "w") == 91.5
    save_file(STATE, tmp_path / "w")
    assert recorded_accuracy(tmp_path / "w") is None


def test_each_of_two_networks_has_its_own_accuracy(tmp_path):
    file = tmp_path / "w.pth"
    torch.save({"teacher": {"state_dict": STATE, "acc": 80.0}, "student": STATE, "acc": 70.0}, file)
    assert recorded_accuracy(f"{file}#teacher") == 80
    assert recorded_accuracy(f"{file}#student") is None
    torch.save({"model": STATE, "model_ema": STATE, "acc": 70.0}, file)
    assert recorded_accuracy(f"{file}#model_ema") == 70
    assert recorded_accuracy(file) == 70
