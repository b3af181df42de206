"""One stage by hand: its runner, what it reads of the teacher, and what an update moved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.engine.runner import StageRunner
from flowstill.engine.teacher import needs_of
from flowstill.features.sections import pair_sections
from flowstill.features.taps import Reading, Tapped
from flowstill.transfer.knowledge import Setting
from flowstill.transfer.stages import Stage


def stage_runner(
    stage: Stage, teacher: nn.Module, student: nn.Module, shape: tuple[int, int, int], seed: int = 0
) -> StageRunner:
    """A runner of the stage on this student, whose images have this shape and ten classes."""
    pairs, setting = pair_sections(teacher, student, shape), Setting(teacher, student, shape, 10, seed)
    return StageRunner(make_fabric("cpu", 1, Precision()), student, stage, pairs, setting)


def read_teacher(runner: StageRunner, teacher: nn.Module, images: Tensor, updates: Sequence[int] = (0,)) -> Reading:
    """What the losses of these updates need of the teacher."""
    taps, logits = needs_of(runner.losses(updates))
    with torch.no_grad():
        return Tapped(teacher, taps, until="logits" if logits else "taps")(images)


def kept(module: nn.Module) -> dict[str, Tensor]:
    """A copy of its state."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def moved(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    """The names of what is no longer as it was ``before``."""
    return {name for name, tensor in module.state_dict().items() if not torch.equal(before[name], tensor)}
