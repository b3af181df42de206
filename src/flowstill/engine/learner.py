"""The one module that trains: a student, its losses, and what they own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowstill.features.taps import Tap, Tapped
from flowstill.features.tracing import example_images, read_once, undisturbed
from flowstill.transfer.knowledge import Loss, Target
from flowstill.transfer.stages import Term, Update


@dataclass(frozen=True)
class BuiltTerm:
    """A term with its loss: ``name`` in the metrics, ``task`` or not."""

    name: str
    term: Term
    loss: Loss
    task: bool


class Learner(nn.Module):
    """The student with all losses of a stage, so that one wrapper (DDP, autocast) holds everything that trains.

    terms: for each update of the stage's cycle, its terms.
    """

    def __init__(self, student: nn.Module, updates: Sequence[Update], terms: Sequence[Sequence[BuiltTerm]]) -> None:
        super().__init__()
        self.student = student
        self.losses = nn.ModuleList(built.loss for row in terms for built in row)
        self.updates, self.terms = tuple(updates), tuple(tuple(row) for row in terms)
        # Kept in a tuple so that the student is registered once.
        self._tapped = tuple(_tap(student, row) for row in self.terms)

    def forward(self, images: Tensor, update: int, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Losses by name, float32 scalars, of one fresh forward of the student."""
        if self.updates[update].update_batchnorm:
            reading = self._tapped[update](images)
        else:
            with frozen_statistics(self.student):
                reading = self._tapped[update](images)
        return {
            built.name: built.loss.compare(reading, target)
            for built, target in zip(self.terms[update], targets, strict=True)
        }

    def parts(self) -> dict[str, list[nn.Module]]:
        """The modules that can move, by role."""
        found: dict[str, list[nn.Module]] = {"student": [self.student]}
        for loss in self.losses:
            assert isinstance(loss, Loss)
            for role, module in loss.parts().items():
                found.setdefault(role, []).append(module)
        return found


def _tap(student: nn.Module, terms: Sequence[BuiltTerm]) -> Tapped:
    """Read what these terms need of the student, and run it no further."""
    taps = dict.fromkeys(tap for built in terms for tap in built.loss.student_taps)
    return Tapped(student, taps, until="logits" if any(b.loss.student_logits for b in terms) else "taps")


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the batch as in training, but its running statistics stay as they are."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    kept = [(norm, norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:
        norm.running_mean = norm.running_var = None
    try:
        yield
    finally:
        for norm, mean, variance in kept:
            norm.running_mean, norm.running_var, norm.track_running_stats = mean, variance, True


def move_only(learner: nn.Module, moving: set[nn.Parameter]) -> None:
    """Let gradients reach ``moving`` alone."""
    for parameter in learner.parameters():
        parameter.requires_grad_(parameter in moving)


def parameters_of(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Their parameters that may train, each once, in order; what its maker froze stays frozen."""
    return list(dict.fromkeys(p for module in modules for p in module.parameters() if p.requires_grad))


def parameters_below(network: nn.Module, tap: Tap, shape: Sequence[int]) -> set[nn.Parameter]:
    """The parameters that train and that the map at ``tap`` depends on, found by one forward in eval mode and its gradient.

    Args: shape of the images, (C, H, W). Raises: TapError, NetworkError. The network is left as it was.

    >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    >>> parameters_below(network, Tap("0"), (1, 5, 5)) == set(network[0].parameters())
    True
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    images = example_images(network, shape)
    with undisturbed(network, images.device):
        found = read_once(Tapped(network, [tap], until="taps"), images)[tap]
        if not found.requires_grad:
            return set()
        gradients = torch.autograd.grad(found.sum(), parameters, allow_unused=True)
    return {p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def as_inputs(images: Tensor, channels_last: bool) -> Tensor:
    """Images in the layout that the run chose."""
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images
