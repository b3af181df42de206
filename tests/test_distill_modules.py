"""`distill` with whatever modules a user brings, as teacher and as student."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

import flowstill as fs
from flowstill.data import open_data
from flowstill.errors import NetworkError, RecipeError, TapError
from support.compared_runs import PLAIN, stop_at, weights

STEPS = 1e-4  # of the schedules: a few updates
IMAGES = torch.rand(2, 1, 8, 8)


def convolutional(norm=lambda layer: layer, width=4):
    return nn.Sequential(
        norm(nn.Conv2d(1, width, 3, 2, 1)),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        norm(nn.Linear(16 * width, 10)),
    )


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def lazy():
    return nn.Sequential(nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))


class Keeping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.kept = convolutional(), {}

    def forward(self, x):
        logits = self.net(x)
        self.kept = {"all": [(logits, 2 * logits)]}
        return logits


class Scaled(nn.Linear):
    """A linear layer with an extra state."""

    def __init__(self, state=None) -> None:
        super().__init__(64, 10)
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


class Blocks(nn.Module):
    """A stem and a trunk, which runs as ``how`` says in training mode."""

    def __init__(self, how=None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.trunk = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU())
        self.fc, self.how = nn.Linear(8, 10), how

    def forward(self, x):
        x = self.stem(x)
        x = self.how(self.trunk, x) if self.training and self.how else self.trunk(x)
        return self.fc(x.mean((2, 3)))


def reentrant(module, x):
    return checkpoint(module, x, use_reentrant=True)


def not_reentrant(module, x):
    return checkpoint(module, x, use_reentrant=False)


def without_gradient(module, x):
    with torch.no_grad():
        return module(x)


def exported(batch=2, **options):
    return torch.export.export(linear().eval(), (torch.rand(batch, 1, 8, 8),), **options).module()


def quantised():
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    return torch.ao.quantization.quantize_dynamic(linear().eval(), {nn.Linear})


def distilled(path, teacher, student, method="kd", **options):
    options = {"scale": STEPS, "out": path / "run", **PLAIN, **options}
    return fs.distill(teacher, student, "digits", method, **options)


TRAINABLE = {
    "keeping": Keeping,
    "weight norm": lambda: convolutional(weight_norm),
    "spectral norm": lambda: convolutional(spectral_norm),
    "parametrised weight norm": lambda: convolutional(parametrizations.weight_norm),
    "parametrised spectral norm": lambda: convolutional(parametrizations.spectral_norm),
    "orthogonal": lambda: convolutional(parametrizations.orthogonal),
    "lazy": lazy,
    "extra state": lambda: nn.Sequential(nn.Flatten(), Scaled({"amax": 1.5, "scale": torch.ones(2)})),
    "tensor as extra state": lambda: nn.Sequential(nn.Flatten(), Scaled(torch.ones(3))),
    "no extra state": lambda: nn.Sequential(nn.Flatten(), Scaled()),
    "scripted": lambda: torch.jit.script(convolutional()),
    "traced": lambda: torch.jit.trace(linear(), IMAGES),
    "fx": lambda: torch.fx.symbolic_trace(convolutional()),
}


@pytest.mark.parametrize("make", TRAINABLE.values(), ids=TRAINABLE)
def test_a_module_is_trained_saved_and_loaded_unchanged(tmp_path, make):
    torch.manual_seed(0)
    student = make()
    run = distilled(tmp_path, linear(), student)
    assert run.student is student
    kept = weights(run)
    state = {name: value for name, value in student.state_dict().items() if isinstance(value, torch.Tensor)}
    assert state.keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in state.items())
    assert fs.evaluate(run, device="cpu")["student"]["accuracy"] == run.summary["jobs"]["student"]["accuracy"]
    assert all(p.isfinite().all() and p.is_leaf for p in student.parameters())


TEACHERS = {
    **TRAINABLE,
    "frozen": lambda: torch.jit.freeze(torch.jit.script(linear().eval())),
    "exported": lambda: exported(dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=512)},)),
    "quantised": quantised,
}


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated")
@pytest.mark.parametrize("make", TEACHERS.values(), ids=TEACHERS)
def test_a_module_can_teach(tmp_path, make):
    torch.manual_seed(0)
    teacher = make()
    run = distilled(tmp_path, teacher, linear())
    assert fs.evaluate(run, device="cpu")["teacher"]["accuracy"] == run.summary["jobs"]["teacher"]["accuracy"]
    assert run.network("teacher") is teacher


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated")
@pytest.mark.parametrize(
    ("teacher", "student", "method", "error", "said"),
    [
        (linear, lambda: torch.jit.freeze(torch.jit.script(linear().eval())), "kd", RecipeError, "have no parameters"),
        (linear, quantised, "kd", RecipeError, "have no parameters"),
        (linear, exported, "kd", NetworkError, "ExportedProgram cannot be trained"),
        (lambda: exported(3), linear, "kd", NetworkError, "exported for one batch size"),
        (lambda: torch.jit.trace(Blocks().eval(), IMAGES), Blocks, "fsp", NetworkError, "TorchScript calls no hooks"),
        (Blocks, lambda: Blocks(reentrant), "at", TapError, r"Tap 'trunk.*' of Blocks has no gradient.*use_reentrant"),
        (Blocks, lambda: Blocks(without_gradient), "at", TapError, "has no gradient in training mode"),
    ],
)
def test_unsupported_modules_are_refused_before_the_first_update(tmp_path, teacher, student, method, error, said):
    seen = []
    with pytest.raises(error, match=said):
        distilled(tmp_path, teacher(), student(), method, on_step=lambda *step: seen.append(step))
    assert not seen
    assert not (tmp_path / "run").exists()


def test_checkpointing_does_not_change_what_is_learned(tmp_path):
    torch.manual_seed(0)
    teacher, students = Blocks(), [Blocks() for _ in range(2)]
    students[1].load_state_dict(students[0].state_dict())
    students[1].how = not_reentrant
    for number, student in enumerate(students):
        distilled(tmp_path / str(number), teacher, student, "at")
    torch.testing.assert_close(students[0].state_dict(), students[1].state_dict())


def test_frozen_weights_before_a_tap_need_no_gradient(tmp_path):
    student = Blocks(without_gradient)
    student.stem.requires_grad_(False)
    student.trunk.requires_grad_(False)
    distilled(tmp_path, Blocks(), student, "at")


def test_an_extra_state_survives_interruption(tmp_path):
    torch.manual_seed(0)
    teacher, state = linear(), {"amax": 1.5}
    whole = nn.Sequential(nn.Flatten(), Scaled(state))
    again = copy.deepcopy(whole)
    distilled(tmp_path / "whole", teacher, whole)
    with pytest.raises(KeyboardInterrupt):
        distilled(tmp_path, teacher, again, on_step=stop_at(("student", "joint", 2)))
    again[1].state = None
    distilled(tmp_path, teacher, again, resume=True)
    assert again[1].state == state
    assert torch.equal(again[1].weight, whole[1].weight)


def test_an_extra_state_that_is_not_plain_data_is_left_out_with_a_warning(tmp_path, caplog):
    student, said = nn.Sequential(nn.Flatten(), Scaled(lambda: 1)), []
    run = distilled(tmp_path, linear(), student, on_step=lambda *step: said.append(caplog.text))
    assert "'1._extra_state' will not be saved: a function is more than tensors" in said[0]
    assert weights(run).keys() == {"1.weight", "1.bias"}


def test_auxiliary_heads_are_not_taken_for_the_logits(tmp_path):
    class Auxiliary(nn.Module):
        def __init__(self, heads) -> None:
            super().__init__()
            self.main, self.aux, self.heads = linear(), linear(), heads

        def forward(self, x):
            return (self.aux(x), self.main(x)) if self.training and self.heads else self.main(x)

    torch.manual_seed(0)
    teacher, students = linear(), [Auxiliary(heads=False)]
    students.append(copy.deepcopy(students[0]))
    students[1].heads = True
    for number, student in enumerate(students):
        distilled(tmp_path / str(number), teacher, student)
    assert torch.equal(students[0].main[1].weight, students[1].main[1].weight)


NETWORKS = """
from torch import nn

class Both(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.body, self.fc = nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, classes)), nn.Linear(classes, classes)

    def forward(self, x):
        pooled = self.body(x)
        return pooled, self.fc(pooled)

def both(num_classes, in_channels):
    return Both(num_classes, in_channels)

def hooked(num_classes, in_channels):
    network = both(num_classes, in_channels)
    network.register_forward_hook(lambda module, images, output: output[1])
    return network
"""


def test_by_name_two_candidate_outputs_are_ambiguous_and_a_hook_decides(tmp_path):
    file = tmp_path / "nets.py"
    file.write_text(NETWORKS)
    with pytest.raises(NetworkError, match=r"job 'student': Both returns 2 tensors.*output\[0\], output\[1\]"):
        distilled(tmp_path, linear(), f"{file}:both", trust_code=True)
    run = distilled(tmp_path, linear(), f"{file}:hooked", trust_code=True)
    network, (images, labels) = (
        run.network(trust_code=True),
        next(iter(open_data(fs.Data("digits")).test_batches(batch=500))),
    )
    right = (network(images).argmax(1) == labels).float().mean().item()
    assert run.summary["jobs"]["student"]["accuracy"] == pytest.approx(100 * right, abs=0.01)
