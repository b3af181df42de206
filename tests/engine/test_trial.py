"""Whatever would fail after training, or train nothing, is found before training."""

import pytest
import torch
from torch import nn

import flowstill as fs
from flowstill.errors import FlowstillError, NetworkError
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


class Nested(nn.Linear):
    """Its state dict has another form than PyTorch's, which it alone can read."""

    def state_dict(self, *args, **kwargs):
        return {"model": super().state_dict(*args, **kwargs), "version": 1}

    def load_state_dict(self, state, strict=True, assign=False):
        return super().load_state_dict(state["model"], strict)


class Unsaveable(nn.Linear):
    def state_dict(self, *args, **kwargs):
        raise KeyError("scale")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Nested, "Nested cannot be loaded after it was saved"),
        (Unsaveable, "cannot be saved: its state_dict raises KeyError: 'scale'"),
    ],
)
def test_a_state_dict_of_its_own_form_is_tried_before_training(tmp_path, made, said):
    class Net(made):
        def forward(self, x):
            return super().forward(x.flatten(1))

    Net.__name__ = made.__name__
    with pytest.raises(NetworkError, match=f"job 'student': .*{said}"):
        distilled(tmp_path, Net(64, 10))
    assert not (tmp_path / "run").exists()


class Listed(nn.Module):
    """Keeps a layer in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.blocks = [{"one": nn.Linear(64, 64)}]
        self.known = [self.fc]

    def forward(self, x):
        return self.fc(self.blocks[0]["one"](x.flatten(1)))


class Cut(nn.Module):
    """Detaches a map on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(self.conv(x).detach().mean((2, 3)))


class Ended(nn.Sequential):
    """A student that ends in a softmax."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Listed, "Listed: 'blocks' holds weights where PyTorch does not find them"),
        (Ended, "Ended gives probabilities, as from a softmax"),
        (Cut, "Cut: no gradient reaches 40 of its 90 parameters in training mode, so 'conv.weight' and 1 more"),
    ],
)
def test_what_would_not_learn_is_named(tmp_path, caplog, made, said):
    distilled(tmp_path, made())
    assert sum(said in record.getMessage() for record in caplog.records) == 1


def test_frozen_weights_are_not_expected_to_learn(tmp_path, caplog):
    student = Cut()
    student.conv.requires_grad_(False)
    distilled(tmp_path, student)
    assert "no gradient" not in caplog.text


def test_a_student_made_in_inference_mode_holds_what_it_learned(tmp_path):
    with torch.inference_mode():
        student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        before = student[1].weight.clone()
    distilled(tmp_path, student)
    assert not torch.equal(student[1].weight, before)


def test_a_teacher_that_rules_out_a_class_teaches_the_others(tmp_path):
    class Ruled(nn.Linear):
        def forward(self, x):
            return torch.cat([super().forward(x.flatten(1))[:, :9], torch.full((len(x), 1), -torch.inf)], 1)

    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    run = distilled(tmp_path, student, teacher=Ruled(64, 10))
    assert run.summary["finished"]
    assert run.summary["jobs"]["student"]["accuracy"] is not None


def test_the_module_of_an_exported_program_is_asked_for(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    program = torch.export.export(network, (torch.zeros(2, 1, 8, 8),))
    with pytest.raises(
        FlowstillError, match=r"The teacher is an ExportedProgram. Give its module: teacher=program.module"
    ):
        distilled(tmp_path, network, teacher=program)
