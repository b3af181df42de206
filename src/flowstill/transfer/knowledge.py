"""The interface of every knowledge: a named specification, and the loss that it builds."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from flowstill.data.batch import Batch
from flowstill.errors import DataError, RecipeError, ShapeError, TapError
from flowstill.features.pairs import Pairs
from flowstill.features.taps import Reading, Tap
from flowstill.schema.registry import Registry
from flowstill.transfer.named import add_specification, read_specification

Target = Any  # a tensor, or a tuple or dict of tensors
Network = Literal["teacher", "student"]


@dataclass(frozen=True)
class Setting:
    """What a knowledge that has networks of its own needs beyond the pairs.

    All networks may lie on the meta device, when a recipe is only checked.

    Attributes:
        teacher: the teacher, which is frozen and must not change; to train one, copy it.
        student: the student.
        shape: (C, H, W) of the images, as the student sees them.
        classes: number of classes of the data.
        seed: seeds whatever is drawn during training.
        shared: modules that several terms of a stage use together, by name; the first term that needs one adds it.
        teacher_shape: (C, H, W) of what the teacher sees, if it has a view of its own; None for ``shape``.
    """

    teacher: nn.Module | None
    student: nn.Module
    shape: tuple[int, int, int]
    classes: int
    seed: int = 0
    shared: dict[str, nn.Module] = field(default_factory=dict)
    teacher_shape: tuple[int, int, int] | None = None

    @property
    def shown_to_teacher(self) -> tuple[int, int, int]:
        """(C, H, W) of the images as the teacher sees them."""
        return self.teacher_shape or self.shape


class Loss(nn.Module):
    """What a training loop calls: ``loss(teacher_reading, student_reading)``, a scalar with a gradient for the student.

    A subclass lists the taps it reads and defines ``target``, what the student is compared with, and ``forward``, the
    comparison. The engine calls the two separately, since targets can be shared between students or stored.

    A loss's own parameters have the role ``adapters`` unless ``parts`` says otherwise.

    Attributes:
        teacher_taps: where the teacher is read.
        student_taps: where the student is read.
        teacher_logits: whether the teacher's logits are read.
        student_logits: whether the student's logits are read.
        same_classes: whether the teacher's predictions are read, so that both networks need the data's classes.
        reduction: over the batch, needed to split a batch over processes.
        storable: whether the target depends on the teacher's reading alone, so that it can be kept on disk.
        frozen_below: an update with this loss moves no student parameter that this tap depends on; None freezes nothing.

    Example:
        >>> from flowstill.features.taps import Tapped
        >>> from flowstill.knowledge.attention import AttentionLoss
        >>> teacher, student = (nn.Sequential(nn.Conv2d(3, width, 3)) for width in (8, 4))
        >>> loss, images = AttentionLoss(["0"], ["0"]), torch.zeros(2, 3, 8, 8)
        >>> with torch.no_grad():
        ...     reading = Tapped(teacher, loss.teacher_taps)(images)
        >>> loss(reading, Tapped(student, loss.student_taps)(images)).shape
        torch.Size([])
    """

    teacher_taps: tuple[Tap, ...] = ()
    student_taps: tuple[Tap, ...] = ()
    teacher_logits: bool = False
    student_logits: bool = False
    same_classes: bool = False
    reduction: Literal["mean", "sum"] = "mean"
    storable: bool = False
    frozen_below: Tap | None = None

    def __call__(self, teacher: Reading | None, student: Reading, batch: Batch | None = None) -> Tensor:
        """The loss of two readings of the same images.

        Args:
            teacher: read at ``teacher_taps``, with logits if ``teacher_logits``; None for a loss that needs no teacher.
            student: read at ``student_taps``, with logits if ``student_logits``.
            batch: needed by losses that read more than the two networks, such as the labels.

        Returns:
            A float32 scalar.

        Raises:
            TapError: these are not two readings, or they lack what the loss reads, as when they are swapped.
            DataError: the loss needs the batch, and there is none.
        """
        self._check(teacher, student)
        with torch.no_grad():
            target = self.target(teacher, batch)
        return self.compare(student, target)

    def compare(self, student: Reading, target: Target) -> Tensor:
        """``forward`` with the module's hooks: what the engine calls."""
        loss: Tensor = super().__call__(student, target)
        return loss

    def parts(self) -> dict[str, nn.Module]:
        """Trainable modules by role: ``adapters``, ``aggregate``, ``discriminator``, ``teacher_copy``."""
        return {"adapters": self} if next(self.parameters(), None) is not None else {}

    def target(self, teacher: Reading | None, batch: Batch | None = None) -> Target:
        """What the student is compared with, without gradient. ``teacher`` is None if no teacher is read."""
        raise NotImplementedError(f"{type(self).__name__} must define the method target(self, teacher, batch=None).")

    def forward(self, student: Reading, target: Target) -> Tensor:
        """The loss, a float32 scalar: mean over the batch unless the paper says otherwise."""
        raise NotImplementedError(f"{type(self).__name__} must define the method forward(self, student, target).")

    def require_teacher(self, teacher: Reading | None) -> Reading:
        """``teacher``, for a ``target`` that needs it.

        Raises:
            TapError: it is None.
        """
        if teacher is None:
            raise TapError(f"{self._expected()} Received no teacher's reading. {self._fix('teacher')}")
        return teacher

    def require_logits(self, network: Network, reading: Reading) -> Tensor:
        """The reading's logits, (B, classes).

        Raises:
            TapError: the forward pass stopped before them.
        """
        if reading.logits is None:
            raise TapError(f"{self._expected()} The {network}'s reading lacks 'logits'. {self._fix(network)}")
        return reading.logits

    def require_batch(self, batch: Batch | None) -> Batch:
        """``batch``, for a ``target`` that needs it.

        Raises:
            DataError: it is None.
        """
        if batch is None:
            raise DataError(
                f"{type(self).__name__} expects (teacher_reading, student_reading, batch). Received no batch. "
                "Pass a flowstill.Batch of the same images."
            )
        return batch

    def _expected(self) -> str:
        return f"{type(self).__name__} expects (teacher_reading, student_reading)."

    def _fix(self, network: Network) -> str:
        return f"Read it with Tapped({network}, loss.{network}_taps)." if self._reads(network) else "Pass None."

    def _reads(self, network: Network) -> tuple[str, ...]:
        """What this loss reads of a network: taps, and ``logits``."""
        if network == "teacher":
            taps, logits = self.teacher_taps, self.teacher_logits
        else:
            taps, logits = self.student_taps, self.student_logits
        return tuple(map(str, taps)) + (("logits",) if logits else ())

    def _missing(self, network: Network, given: object) -> tuple[str, ...]:
        """What ``given`` lacks as that network's reading."""
        if not isinstance(given, Reading):
            return () if given is None and not self._reads(network) else ("reading",)
        found = {*map(str, given.maps), *(() if given.logits is None else ("logits",))}
        return tuple(name for name in self._reads(network) if name not in found)

    def _check(self, teacher: object, student: object) -> None:
        """Raises: TapError if these are not the readings that this loss reads."""
        swapped = not self._missing("teacher", student) and not self._missing("student", teacher)
        given: tuple[tuple[Network, object], ...] = (("teacher", teacher), ("student", student))
        for network, reading in given:
            if missing := self._missing(network, reading):
                lacks = f"The {network}'s reading lacks {', '.join(map(repr, missing))}."
                received = f"Received as {network}: {type(reading).__name__}."
                said = lacks if isinstance(reading, Reading) else received
                raise TapError(f"{self._expected()} {said} {'Swap the two.' if swapped else self._fix(network)}")


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast, which would round products to bfloat16; on ``meta``, which refuses it, no context."""
    # Not torch.amp.is_autocast_available, which torch 2.9 cannot trace.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class Knowledge:
    """A specification of what is matched. Subclasses are ``@specification`` dataclasses with a ``name`` field.

    Attributes:
        summary: what it transfers and what it needs of the two networks, in a line.
        paper: authors, year and title or venue.
        left_open: what the paper does not say about it, so that results rest on a reconstruction.
        needs_teacher: whether its loss reads the teacher.
        reads_sections: whether ``build`` uses the pairs of sections; if not, there need not be any.
        name: what recipes call it.
    """

    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    left_open: ClassVar[str] = ""
    needs_teacher: ClassVar[bool] = True
    reads_sections: ClassVar[bool] = True
    name: str

    @property
    def needs_float32(self) -> bool:
        """Whether maps rounded to bfloat16 spoil its gradient. A run of its own choice of precision then takes float32."""
        return False

    def build(self, pairs: Pairs, setting: Setting | None = None) -> Loss:
        """The loss for these pairs of sections.

        Args:
            pairs: the teacher's sections with the student's.
            setting: the networks and the data; most losses need only the pairs.

        Raises:
            ShapeError: the pairs do not fit this knowledge, or there are none and it needs one.
            RecipeError: the setting lacks what it needs.
        """
        raise NotImplementedError(f"{type(self).__name__} must define the method build(self, pairs, setting=None).")

    def require_pairs(self, pairs: Pairs) -> Pairs:
        """``pairs``, for a ``build`` that needs them.

        Raises:
            ShapeError: there are none.
        """
        if not pairs:
            raise ShapeError(
                f"{self.name} needs at least one pair of sections. Received none: no section of the teacher was paired "
                "with one of the student's. Name taps by hand (a job's 'flows'), or choose a knowledge that reads no "
                "sections, such as 'soft_logits'."
            )
        return pairs

    def require_teacher(self, setting: Setting | None) -> tuple[Setting, nn.Module]:
        """The setting and its teacher, for a ``build`` that needs them.

        Raises:
            RecipeError: there is no teacher.
        """
        if setting is None or setting.teacher is None:
            received = "no setting" if setting is None else "a setting without one"
            raise RecipeError(
                f"{self.name} needs a setting with a teacher. Received {received}. "
                "Give the job a teacher, or call build(pairs, Setting(teacher, student, shape, classes))."
            )
        return setting, setting.teacher


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
    add_specification(KNOWLEDGE, Knowledge, cls, "@register")
    return cls


def parse_knowledge(value: Any) -> Knowledge:
    """Read ``"fsp"``, ``{"name": "fsp", "weighting": "sum"}`` or a Knowledge itself."""
    return read_specification(KNOWLEDGE, Knowledge, value, "{name: fsp, weighting: sum}")
