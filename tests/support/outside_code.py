"""A user's own code, as the text of a Python file: a knowledge and a rule."""

TRANSFER = '''
from typing import ClassVar, Literal

import torch
import flowstill as fs


class NormsLoss(fs.Loss):
    """The squared difference of the maps' mean squares."""

    storable = True

    def __init__(self, pairs):
        super().__init__()
        self.teacher_taps = tuple(pair.teacher.exit for pair in pairs)
        self.student_taps = tuple(pair.student.exit for pair in pairs)

    def target(self, teacher, batch=None):
        return tuple(teacher.maps[tap].float().square().mean((1, 2, 3)) for tap in self.teacher_taps)

    def forward(self, student, target):
        norms = (student.maps[tap].float().square().mean((1, 2, 3)) for tap in self.student_taps)
        return torch.stack([(a - b).square().mean() for a, b in zip(norms, target)]).sum()


@fs.register
@fs.specification
class Norms(fs.Knowledge):
    summary: ClassVar[str] = "mean squares of the maps"
    name: Literal["my-norms"] = "my-norms"

    def build(self, pairs, setting=None):
        return NormsLoss(pairs)


@fs.register_rule
@fs.specification
class Half(fs.Rule):
    summary: ClassVar[str] = "the task's gradient and half of the transfer's"
    name: Literal["my-half"] = "my-half"
    share: float = 0.5

    def meet(self, task, transfer, *, step, decayed):
        return [a if b is None else b * self.share if a is None else a + self.share * b for a, b in zip(task, transfer)]
'''
