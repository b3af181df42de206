"""One stage by hand: its student, what it reads of the teacher, and what an update moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowstill.data.batch import Batch
from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.engine.seeds import RandomSequences
from flowstill.engine.step import Step
from flowstill.engine.student import Student
from flowstill.engine.teacher import TaughtBatch, Teacher, needs_of
from flowstill.features.pairs import pair_sections
from flowstill.features.taps import Reading, Tapped
from flowstill.transfer.knowledge import Loss, Setting, Target
from flowstill.transfer.stages import Stage


class StudentByHand(Student):
    """A student whose updates are called one by one, with batches and readings that the test makes."""

    def __init__(self, fabric: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(fabric, *args, **kwargs)
        self._step = Step(
            fabric, {"student": self}, Teacher(fabric, None), lambda number: None, RandomSequences(fabric)
        )

    def update(
        self,
        number: int,
        batch: Batch,
        reading: Reading | None,
        step: int,
        stored: Mapping[Loss, Target] | None = None,
    ) -> dict[str, Tensor]:
        """Update ``number`` at ``step`` of the stage; its losses."""
        self._step.number = step
        return self._step.update(self, number, TaughtBatch(batch, reading, stored or {}))

    def losses(self, updates: Sequence[int]) -> list[Loss]:
        """The losses of these updates, each once."""
        return list(dict.fromkeys(term.loss for update in updates for term in self.terms[update]))

    def slot(self, step: int) -> list[int]:
        """The numbers of the updates that the batch of this step runs."""
        return self.cycle[step % len(self.cycle)]


def stage_runner(
    stage: Stage, teacher: nn.Module, student: nn.Module, shape: tuple[int, int, int], seed: int = 0
) -> StudentByHand:
    """A runner of the stage on this student, whose images have this shape and ten classes."""
    pairs, setting = pair_sections(teacher, student, shape), Setting(teacher, student, shape, 10, seed)
    return StudentByHand(make_fabric("cpu", 1, Precision()), student, stage, pairs, setting)


def read_teacher(runner: StudentByHand, teacher: nn.Module, images: Tensor, updates: Sequence[int] = (0,)) -> Reading:
    """What the losses of these updates need of the teacher."""
    taps, logits = needs_of(runner.losses(updates))
    with torch.no_grad():
        return Tapped(teacher, taps, until="logits" if logits else "taps")(images)


def kept(module: nn.Module) -> dict[str, Tensor]:
    """A copy of its state."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def moved(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    """The names of what has changed since ``before``."""
    return {name for name, tensor in module.state_dict().items() if not torch.equal(before[name], tensor)}
