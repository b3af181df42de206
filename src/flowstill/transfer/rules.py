"""How the gradients of task and transfer are combined, once both are reduced over the processes.

A rule is an object with a ``meet`` method. Adding one touches no other file: see ``register_rule``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from flowstill.schema import specification
from flowstill.schema.registry import Registry
from flowstill.transfer.named import add_specification, read_specification

Gradients = Sequence[Tensor | None]  # one for each of a player's parameters, None where a loss does not reach it


class Rule:
    """How two gradients become one. Subclasses are ``@specification`` dataclasses with a ``name`` field.

    Attributes:
        summary: what it does, in a line.
        apart: whether ``meet`` needs the gradients of task and transfer separately, which takes a second backward pass.
            If not, the engine takes the gradient of the summed losses and never calls ``meet``.
        name: what recipes call it.
    """

    summary: ClassVar[str] = ""  # one line
    apart: ClassVar[bool] = True
    name: str

    def meet(
        self, task: Gradients, transfer: Gradients, *, step: int, decayed: Callable[[Gradients], Gradients]
    ) -> Gradients:
        """The gradient that the player steps by; its optimiser adds weight decay afterwards.

        Args:
            task: gradients of the task's losses, one for each parameter of the player, None where they do not reach it.
            transfer: gradients of the transfer's losses.
            step: number of updates of the stage so far.
            decayed: adds to gradients what the optimiser will add: the L2 and L1 terms of the weights.

        Returns:
            One gradient for each parameter, None to leave it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define the method meet(self, task, transfer, *, step, decayed)."
        )

    def scaled(self, factor: float) -> Self:
        """The rule for a stage whose steps are multiplied by ``factor``: unchanged, unless it counts steps."""
        return self


RULES: Registry[type[Rule]] = Registry("rule", "flowstill.transfer")
R = TypeVar("R", bound=type[Rule])


def register_rule(cls: R) -> R:
    """Let recipes name a rule: ``rule: NAME``, where NAME is the default of its field ``name``.

    Raises:
        RecipeError: not a ``@specification`` of a ``Rule`` with a name, or the name is taken.
    """
    add_specification(RULES, Rule, cls, "@register_rule")
    return cls


def parse_rule(value: Any) -> Rule:
    """Read ``"adaptive_clip"``, ``{"name": "adaptive_clip", "mode": "global"}`` or a Rule itself."""
    return read_specification(RULES, Rule, value, "{name: adaptive_clip, mode: global}")


@register_rule
@specification
class Sum(Rule):
    """The gradient of the summed losses."""

    summary: ClassVar[str] = "the gradient of the summed losses"
    apart: ClassVar[bool] = False

    name: Literal["sum"] = "sum"


@register_rule
@specification
class AdaptiveClip(Rule):
    """The transfer gradient is clipped to the task gradient's norm (Lee et al. 2018, section 3.2).

    Attributes:
        mode: ``official`` clips each variable's gradient to the norm of its task gradient including the L2 term, as the
            published code does. ``ce_norm`` leaves the L2 term out. ``global`` clips all variables by one factor, from
            the norms over all that the player moves (Eq. 13). ``eq14_literal`` is Eq. 13-14 as printed.
        epoch_steps: steps per epoch, after which the ``p`` of the sigmoid grows by one.
    """

    summary: ClassVar[str] = "the transfer gradient, clipped to the task gradient's norm"

    name: Literal["adaptive_clip"] = "adaptive_clip"
    mode: Literal["official", "ce_norm", "global", "eq14_literal"] = "official"
    epoch_steps: Annotated[int, Field(ge=1)] = 390

    def meet(
        self, task: Gradients, transfer: Gradients, *, step: int, decayed: Callable[[Gradients], Gradients]
    ) -> Gradients:
        """Task plus clipped transfer gradient, by the mode."""
        epoch = step // self.epoch_steps
        if self.mode == "eq14_literal":
            return eq14_literal(task, transfer, epoch)
        if self.mode == "global":
            return clip_global(task, transfer, sigmoid(epoch))
        against = decayed(task) if self.mode == "official" else None
        return clip_per_variable(task, transfer, sigmoid(epoch), against)

    def scaled(self, factor: float) -> Self:
        """With ``factor`` times as many steps per epoch, at least one."""
        return replace(self, epoch_steps=max(1, round(self.epoch_steps * factor)))


def clip_per_variable(
    task: Gradients, transfer: Gradients, share: float, against: Gradients | None = None
) -> list[Tensor | None]:
    """``g_i = task_i + transfer_i * min(1, share * |task_i| / |transfer_i|)`` for every variable i.

    Lee et al. (2018), section 3.2, as their published training code computes it: ``share`` is the sigmoid of the epoch,
    and the norm is that of the task's gradient *with* its L2 term. Where the task has no gradient the transfer's is
    dropped; a zero transfer gradient stays zero.

    Args:
        task: gradients of the task, each with its variable's shape; None where a loss does not reach the variable.
        transfer: gradients of the transfer.
        share: of the task's norm that the transfer may reach.
        against: the gradients whose norm counts, with the L2 term; None for ``task``.
    """
    against = task if against is None else against
    return [_meet(a, b, c, share) for a, b, c in zip(task, transfer, against, strict=True)]


def _meet(task: Tensor | None, transfer: Tensor | None, against: Tensor | None, share: float) -> Tensor | None:
    if task is None or transfer is None or against is None:
        return task
    bound = share * torch.linalg.vector_norm(against)
    return task + transfer * _at_most(bound, torch.linalg.vector_norm(transfer))


def _at_most(bound: Tensor, norm: Tensor) -> Tensor:
    """The factor that brings ``norm`` down to ``bound``; 1 if it is not above."""
    return torch.where(norm > bound, bound / norm, 1.0)


def clip_global(task: Gradients, transfer: Gradients, share: float) -> list[Tensor | None]:
    """``clip_per_variable`` with one factor, by the norms of Eq. 13: each gradient's over all variables that it reaches.

    A variable that the transfer does not reach, such as the last layer, has a gradient of 0 there and counts in the
    task's norm.
    """
    factor = _at_most(share * _norm(task), _norm(transfer))
    return [_plus(a, b, factor) for a, b in zip(task, transfer, strict=True)]


def eq14_literal(task: Gradients, transfer: Gradients, epoch: float) -> list[Tensor | None]:
    """Eq. 13-14 as printed: a transfer gradient *smaller* than the task's is multiplied by 1/(1 + exp(p - tau)).

    tau is the ratio of the norms, each over all of the student's variables, p the epoch. Kept for comparison: it
    weakens the transfer when it is small already, and to nothing as the epochs pass.
    """
    a, b = _norm(task), _norm(transfer)
    tau = a / b
    factor = torch.where((b < a) & (b > 0), torch.sigmoid(tau - epoch), 1.0)
    return [_plus(x, y, factor) for x, y in zip(task, transfer, strict=True)]


def sigmoid(epoch: float) -> float:
    """The share of the task's norm that the transfer may reach after ``epoch`` epochs: 0.5, 0.73, 0.88, ... 1."""
    return 1.0 / (1.0 + math.exp(-epoch))


def _norm(gradients: Gradients) -> Tensor:
    """One L2 norm over all variables; those without a gradient count as 0."""
    norms = [torch.linalg.vector_norm(g) for g in gradients if g is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _plus(task: Tensor | None, transfer: Tensor | None, factor: Tensor) -> Tensor | None:
    if transfer is None:
        return task
    return transfer * factor if task is None else task + transfer * factor
