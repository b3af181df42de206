"""What every kind of knowledge has: a specification that builds a loss, and the loss that the engine calls."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from flowstill.data.batch import Batch
from flowstill.sections import Pairs
from flowstill.taps import Reading, Tap

Target = Any  # a tensor, or a tuple or dict of tensors


@dataclass(frozen=True)
class Setting:
    """What a knowledge that brings networks of its own must know beside the pairs.

    teacher is frozen and must stay as it is; to train one, copy it. shape: the images', (C, H, W). classes: of the data.
    seed: for what is drawn while training. shared: modules that several terms of one stage use together, by name; the
    first that needs one puts it there. All may lie on the meta device, when a recipe is only checked.
    """

    teacher: nn.Module | None
    student: nn.Module
    shape: tuple[int, int, int]
    classes: int
    seed: int = 0
    shared: dict[str, nn.Module] = field(default_factory=dict)


class Loss(nn.Module):
    """What the engine calls. Parameters that it owns belong to the role ``adapters`` unless ``parts`` says otherwise."""

    teacher_taps: tuple[Tap, ...] = ()
    student_taps: tuple[Tap, ...] = ()
    teacher_logits: bool = False
    student_logits: bool = False
    same_classes: bool = False  # the teacher's predictions are read, so they must be of the data's classes
    reduction: Literal["mean", "sum"] = "mean"  # how it gathers the batch: needed to split a batch over processes
    storable: bool = False  # the target depends on the teacher's reading alone, so it may be kept on disk
    frozen_below: Tap | None = None  # an update with this loss moves nothing of the student that this tap depends on

    def parts(self) -> dict[str, nn.Module]:
        """Modules that train, by role: ``adapters``, ``aggregate``, ``discriminator``, ``teacher_copy``."""
        return {"adapters": self} if next(self.parameters(), None) is not None else {}

    def target(self, teacher: Reading | None, batch: Batch | None = None) -> Target:
        """What the student is held against, without gradient. ``teacher`` is None if no teacher is read."""
        raise NotImplementedError

    def forward(self, student: Reading, target: Target) -> Tensor:
        """The loss, a float32 scalar: mean over the batch unless the paper says otherwise."""
        raise NotImplementedError


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast would round the products to bfloat16; ``meta``, which has none, refuses the context."""
    # Not torch.amp.is_autocast_available, which torch 2.9 cannot trace.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class Knowledge:
    """A specification of what is matched. Subclasses are ``@specification`` dataclasses with a ``name`` field."""

    summary: ClassVar[str] = ""  # one line: what it transfers, and what it needs of the two networks
    paper: ClassVar[str] = ""
    left_open: ClassVar[str] = ""  # what the paper does not say of it, so that results rest on a reconstruction
    needs_teacher: ClassVar[bool] = True
    reads_sections: ClassVar[bool] = True  # False: ``build`` does not use the pairs, which need not be there
    name: str

    def build(self, pairs: Pairs, setting: Setting | None = None) -> Loss:
        """The loss for these pairs of sections; most need no more than these.

        Raises: ShapeError if this knowledge does not fit them.
        """
        raise NotImplementedError
