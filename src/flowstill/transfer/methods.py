"""Named methods: what ``distill --method`` takes. Each stands in its knowledge's file, under ``@register_method``.

All train on the task for the same 64 000 updates with the same learning rates, which Yim et al. (CVPR 2017) use for
CIFAR-10 at a batch size of 256. What comes before, and the optimisers, follow each paper. The papers' tables, with
their printed budgets, are recipes of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from flowstill.errors import RecipeError, did_you_mean
from flowstill.schema.registry import Registry
from flowstill.transfer.knowledge import Knowledge
from flowstill.transfer.procedures import joint, schedule, two_stage
from flowstill.transfer.rules import AdaptiveClip
from flowstill.transfer.schedules import Schedule
from flowstill.transfer.stages import Optimizer, Stage, Term

TASK, TASK_LR = schedule((0.1, 32_000), (0.01, 48_000), (0.001, 64_000))
FLOW, FLOW_LR = schedule((1e-3, 11_000), (1e-4, 16_000), (1e-5, 21_000))
CLIP = AdaptiveClip(epoch_steps=195)  # an epoch of CIFAR: 50 000 images in batches of 256
NESTEROV = Optimizer(nesterov=True, decay="weights")

SAME_CHANNELS = "sections, with equal channels at their ends"
ANY_CHANNELS = "sections, of any channels"
SAME_CLASSES = "the same classes"

Stages = tuple[Stage, ...]
F = TypeVar("F", bound=Callable[..., Iterable[Stage]])


@dataclass(frozen=True)
class Method:
    """A way to teach a student.

    Attributes:
        name: what ``--method`` takes.
        make: returns the stages; its parameters may be ``sections``, the number of sections in which teacher and
            student pair, and ``name``, the method's own.
        transfers: what passes from teacher to student, in a line.
        needs: what the two networks must have in common, in a line.
        paper: authors and year.
        reconstruction: whether the paper leaves so much open that results are marked as a reconstruction's.
    """

    name: str
    make: Callable[..., Iterable[Stage]]
    transfers: str
    needs: str = ""
    paper: str = ""
    reconstruction: bool = False

    @property
    def by_section(self) -> bool:
        """Whether the stages depend on the number of sections."""
        return "sections" in inspect.signature(self.make).parameters

    def stages(self, sections: int) -> Stages:
        """The stages for networks that pair in this many sections."""
        given: dict[str, Any] = {"sections": sections, "name": self.name}
        parameters = inspect.signature(self.make).parameters
        stages = self.make(**{key: value for key, value in given.items() if key in parameters})
        return (stages,) if isinstance(stages, Stage) else tuple(stages)


METHODS: Registry[Method] = Registry("method", "flowstill.knowledge")


def register_method(
    *names: str, transfers: str | None = None, needs: str = "", paper: str = "", reconstruction: bool = False
) -> Callable[[F], F]:
    """Let ``distill`` and recipes name a method: ``--method NAME``, ``stages: NAME``.

    It decorates a function that returns one or several stages, built by the procedures of
    ``flowstill.transfer.procedures``. The function may take ``sections``, the number of sections in which teacher and
    student pair, and ``name``, for a function that serves several names.

    Args:
        names: one or more.
        transfers: what passes from teacher to student, in a line; by default the docstring's first line.
        needs: what the two networks must have in common, such as "the same classes".
        paper: authors and year.
        reconstruction: whether the paper leaves so much open that results are marked as a reconstruction's.

    Raises:
        RecipeError: no name, a taken name, an unknown parameter, or not a function.

    Example:
        >>> @register_method("labels-twice", transfers="nothing: the task, twice")
        ... def labels_twice():
        ...     return joint("labels", steps=64_000, lr=0.1)
        >>> [stage.name for stage in find_method("labels-twice").stages(3)]
        ['joint']
    """
    if not names or not all(isinstance(name, str) for name in names):
        raise RecipeError(f"Expected a method's name, as in @register_method('mine'). Received: {names!r}.")

    def decorate(make: F) -> F:
        if not callable(make):
            raise RecipeError(f"Expected a function that returns stages under @register_method. Received: {make!r}.")
        for parameter in inspect.signature(make).parameters.values():
            if parameter.name not in ("sections", "name") and parameter.default is parameter.empty:
                raise RecipeError(
                    f"{names[0]}: expected a function of 'sections' and 'name', or of neither. "
                    f"Received the parameter {parameter.name!r}. Give it a default."
                )
        line = transfers if transfers is not None else (make.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        for name in names:
            METHODS.add(name, Method(name, make, line, needs, paper, reconstruction), make.__module__)
        return make

    return decorate


def find_method(name: str) -> Method:
    """The method called ``name``.

    Raises:
        RecipeError: there is none; the message offers the nearest.

    >>> [stage.name for stage in find_method("fsp").stages(3)]
    ['transfer', 'task']
    """
    if name not in METHODS:
        near = did_you_mean(name, METHODS)
        raise RecipeError(" ".join(filter(None, (f"Unknown method {name!r}.", near, "See `flowstill list methods`."))))
    return METHODS[name]


def before_task(
    knowledge: Knowledge, lr: Schedule = FLOW_LR, *, task_lr: Schedule = TASK_LR, optimizer: Optimizer | None = None
) -> Stages:
    """A first stage on all images without labels, then the task (Yim et al. 2017, Algorithm 1)."""
    return two_stage(
        knowledge, transfer_steps=FLOW, transfer_lr=lr, task_steps=TASK, task_lr=task_lr, optimizer=optimizer
    )


def clipped(knowledge: Knowledge, optimizer: Optimizer | None = None) -> Stages:
    """Task and transfer at once, the transfer's gradient clipped to the task's (Lee et al. 2018, section 3.2)."""
    return joint(knowledge, steps=TASK, lr=TASK_LR, rule=CLIP, optimizer=optimizer)


def added(knowledge: Knowledge, share: float | None = None) -> Stages:
    """The sum of the task's loss and the transfer's.

    Args:
        share: the transfer's weight, the task's being 1 - share; None for 1 and 1.
    """
    task = "labels" if share is None else Term("labels", round(1 - share, 6))
    return joint(Term(knowledge, share or 1.0), steps=TASK, lr=TASK_LR, task=task)
