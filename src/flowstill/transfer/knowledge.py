"""What every kind of knowledge has: a specification that builds a loss, the loss that the engine calls, and a name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from flowstill.data.batch import Batch
from flowstill.errors import RecipeError, TapError
from flowstill.features.sections import Pairs
from flowstill.features.taps import Reading, Tap
from flowstill.schema import is_specification, validated
from flowstill.schema.registry import Registry

Target = Any  # a tensor, or a tuple or dict of tensors


@dataclass(frozen=True)
class Setting:
    """What a knowledge that has networks of its own needs beyond the pairs.

    All networks may lie on the meta device, when a recipe is only checked.

    Attributes:
        teacher: the teacher, which is frozen and must not change; to train one, copy it.
        student: the student.
        shape: (C, H, W) of the images.
        classes: number of classes of the data.
        seed: seeds whatever is drawn during training.
        shared: modules that several terms of a stage use together, by name; the first term that needs one adds it.
    """

    teacher: nn.Module | None
    student: nn.Module
    shape: tuple[int, int, int]
    classes: int
    seed: int = 0
    shared: dict[str, nn.Module] = field(default_factory=dict)


class Loss(nn.Module):
    """What a loop calls: ``loss(teacher_reading, student_reading)``, a scalar with a gradient for the student.

    A subclass says which taps it reads and has a ``target``, what the student is compared with, and a ``forward``, which
    compares. The engine calls the two apart, since targets can be shared between students or stored.

    Parameters that a loss owns belong to the role ``adapters`` unless ``parts`` says otherwise.

    Example:
        >>> from flowstill.features.taps import Tapped
        >>> from flowstill.knowledge.attention import AttentionLoss
        >>> teacher, student = (nn.Sequential(nn.Conv2d(3, width, 3)) for width in (8, 4))
        >>> loss, images = AttentionLoss([Tap("0")], [Tap("0")], beta=1000.0), torch.zeros(2, 3, 8, 8)
        >>> with torch.no_grad():
        ...     reading = Tapped(teacher, loss.teacher_taps)(images)
        >>> loss(reading, Tapped(student, loss.student_taps)(images)).shape
        torch.Size([])
    """

    teacher_taps: tuple[Tap, ...] = ()
    student_taps: tuple[Tap, ...] = ()
    teacher_logits: bool = False
    student_logits: bool = False
    same_classes: bool = False  # the teacher's predictions are read, so they must be of the data's classes
    reduction: Literal["mean", "sum"] = "mean"  # how it gathers the batch: needed to split a batch over processes
    storable: bool = False  # the target depends on the teacher's reading alone, so it may be kept on disk
    frozen_below: Tap | None = None  # an update with this loss moves nothing of the student that this tap depends on

    def __call__(self, teacher: Reading | None, student: Reading, batch: Batch | None = None) -> Tensor:
        """The loss of two readings of the same images.

        Args:
            teacher: read at ``teacher_taps``, with logits if ``teacher_logits``; None for a loss that needs no teacher.
            student: read at ``student_taps``, with logits if ``student_logits``.
            batch: where the loss needs more than the readings, such as the labels.

        Returns:
            A float32 scalar.

        Raises:
            TapError: not two readings, or readings without what the loss reads (as when called the other way round).
        """
        self._check("teacher", teacher, self.teacher_taps, self.teacher_logits, student)
        self._check("student", student, self.student_taps, self.student_logits, teacher)
        with torch.no_grad():
            target = self.target(teacher, batch)
        return self.compare(student, target)

    def compare(self, student: Reading, target: Target) -> Tensor:
        """``forward``, with the hooks that it may have: what the engine calls."""
        loss: Tensor = super().__call__(student, target)
        return loss

    def parts(self) -> dict[str, nn.Module]:
        """Modules that train, by role: ``adapters``, ``aggregate``, ``discriminator``, ``teacher_copy``."""
        return {"adapters": self} if next(self.parameters(), None) is not None else {}

    def target(self, teacher: Reading | None, batch: Batch | None = None) -> Target:
        """What the student is compared with, without gradient. ``teacher`` is None if no teacher is read."""
        raise NotImplementedError

    def forward(self, student: Reading, target: Target) -> Tensor:
        """The loss, a float32 scalar: mean over the batch unless the paper says otherwise."""
        raise NotImplementedError

    def _check(self, role: str, given: object, taps: Sequence[Tap], logits: bool, other: object) -> None:
        """Raises: TapError if ``given`` is not a reading of this loss's ``role``."""
        expected = f"{type(self).__name__} expects (teacher_reading, student_reading)"
        if given is None and not taps and not logits:
            return
        if not isinstance(given, Reading):
            raise TapError(
                f"{expected}. Received as {role}: {type(given).__name__}. Read it with Tapped(network, loss.{role}_taps)."
            )

        def lacks(reading: Reading) -> list[str]:
            missing = [str(tap) for tap in taps if tap not in reading.maps]
            return missing + (["logits"] if logits and reading.logits is None else [])

        if missing := lacks(given):
            swapped = isinstance(other, Reading) and not lacks(other)
            fix = "Swap the two." if swapped else f"Read it with Tapped(network, loss.{role}_taps)."
            raise TapError(f"{expected}. The {role}'s reading lacks {', '.join(map(repr, missing))}. {fix}")


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


KNOWLEDGE: Registry[type[Knowledge]] = Registry("knowledge", "flowstill.knowledge")
K = TypeVar("K", bound=type[Knowledge])


def register(cls: K) -> K:
    """Let recipes name a knowledge: ``transfer: NAME``, where NAME is the default of its field ``name``.

    Raises:
        RecipeError: not a ``@specification`` of a ``Knowledge`` with a name, or the name is taken.

    Example:
        >>> from flowstill.schema import specification
        >>> @register
        ... @specification
        ... class Norms(Knowledge):
        ...     name: Literal["norms"] = "norms"
        >>> parse_knowledge("norms")
        Norms(name='norms')
    """
    if not (isinstance(cls, type) and issubclass(cls, Knowledge) and is_specification(cls)):
        raise RecipeError(
            f"Expected a subclass of Knowledge under @register and @specification. Received: {cls!r}. "
            "Write @register above @specification."
        )
    KNOWLEDGE.add(getattr(cls, "name", ""), cls, cls.__module__)
    return cls


def parse_knowledge(value: Any) -> Knowledge:
    """Read ``"fsp"``, ``{"name": "fsp", "weighting": "sum"}`` or a Knowledge itself."""
    if isinstance(value, Knowledge):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise RecipeError("a knowledge is a name or a mapping with a key 'name', such as {name: fsp, weighting: sum}")
    return validated(KNOWLEDGE.find(value["name"]), value)
