"""Whatever would fail after training, or train nothing, is found before training."""

import pytest
import torch
from torch import nn

import flowstill as fs
from flowstill.errors import NetworkError
from support.compared_runs import PLAIN


def distilled(path, student, method="kd", teacher=None):
    teacher = teacher or nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return fs.distill(teacher, student, "digits", method, out=path / "run", scale=5e-5, **PLAIN)


class Forgetful(nn.Linear):
    """Does not save its bias."""

    def __init__(self, reads=True) -> None:
        super().__init__(64, 10)
        self.reads = reads

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.reads:
            return
        del destination[prefix + "bias"]

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if self.reads:
            super()._load_from_state_dict(state_dict, prefix, *args)


@pytest.mark.parametrize(("reads", "lost"), [(True, "bias"), (False, "weight")])
def test_weights_lost_by_a_state_dict(tmp_path, reads, lost):
    with pytest.raises(NetworkError, match=rf"job 'student': Sequential loses '1\.{lost}' when it is saved"):
        distilled(tmp_path, nn.Sequential(nn.Flatten(), Forgetful(reads)))
    assert not (tmp_path / "run").exists()


class Body(nn.Module):
    """Does something else in training mode."""

    def __init__(self, training) -> None:
        super().__init__()
        self.fc, self.does = nn.Linear(64, 10), training

    def forward(self, x):
        return self.does(self, x) if self.training else self.fc(x.flatten(1))


def fails(net, x):
    raise KeyError("targets")


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (fails, "Body cannot take images.*KeyError: 'targets'"),
        (lambda net, x: net.fc(x.flatten(1)).detach(), "Body cannot learn: no gradient leads from its logits"),
        (lambda net, x: net.fc(x.flatten(1))[:, :3], "Body returns logits.*none in training mode"),
    ],
)
def test_a_student_that_cannot_run_in_training_mode(tmp_path, training, said):
    with pytest.raises(NetworkError, match=f"job 'student': {said}"):
        distilled(tmp_path, Body(training))
    assert not (tmp_path / "run").exists()
    distilled(tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), teacher=Body(training))  # it only teaches


class Pooled(nn.Module):
    """Has a map that depends on no weights, though a layer with weights ran before it."""

    def __init__(self) -> None:
        super().__init__()
        self.side, self.pool = nn.Conv2d(1, 3, 3, padding=1), nn.AvgPool2d(2)
        self.conv, self.fc = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(6, 10)

    def forward(self, x):
        side = self.side(x).mean((2, 3))
        return self.fc(torch.cat([side, self.conv(self.pool(x)).mean((2, 3))], 1))


def test_a_map_that_depends_on_no_weights_needs_no_gradient(tmp_path):
    flows = "student.flows=[{teacher: [pool, conv], student: [pool, conv]}]"
    fs.distill(Pooled(), Pooled(), "digits", "fsp", out=tmp_path / "run", scale=5e-5, set=flows, **PLAIN)
