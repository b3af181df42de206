"""The ways of transfer, as short functions that return stages.

A procedure that belongs to one paper stands with its knowledge: ``alternating`` in ``knowledge.representing``,
``adversarial`` in ``knowledge.kdgan``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from flowstill.errors import RecipeError
from flowstill.schema.registry import Registry
from flowstill.transfer.rules import Rule, Sum
from flowstill.transfer.schedules import Constant, Milestones, Schedule
from flowstill.transfer.stages import Optimizer, Player, Stage, TermsLike, Update

PROCEDURES: Registry[Callable[..., Iterable[Stage]]] = Registry(
    "procedure", "flowstill.transfer", "flowstill.knowledge"
)
F = TypeVar("F", bound=Callable[..., Iterable[Stage]])


def register_procedure(make: F) -> F:
    """Let recipes name a procedure: ``stages: {procedure: NAME, ...}``, with the function's arguments next to the name.

    Raises:
        RecipeError: not a function, or its name is taken.
    """
    if not inspect.isroutine(make):
        raise RecipeError(f"Expected a function that returns stages under @register_procedure. Received: {make!r}.")
    PROCEDURES.add(make.__name__, make, make.__module__)
    return make


def _update(task: TermsLike = (), transfer: TermsLike = (), rule: Rule = Sum()) -> Update:  # noqa: B008 (frozen)
    return Update(task=task, transfer=transfer, rule=rule)


def stage(
    name: str, steps: int, lr: Schedule | float, cycle: Sequence[Update], optimizer: Optimizer | None = None
) -> Stage:
    """A stage of one player, the student with its adapters.

    Args:
        name: the stage's.
        steps: number of batches.
        lr: learning rate.
        cycle: batch t runs ``cycle[t % len(cycle)]``.
        optimizer: how the student steps; None for the default.
    """
    lr = Constant(lr) if isinstance(lr, (int, float)) else lr
    player = Player(lr=lr, optimizer=optimizer or Optimizer())
    return Stage(name, steps, {"student": player}, tuple((update,) for update in cycle))


@register_procedure
def alone(steps: int, lr: Schedule | float, optimizer: Optimizer | None = None) -> tuple[Stage]:
    """The task alone: how a teacher and a baseline train."""
    return (stage("task", steps, lr, [_update(task="labels")], optimizer),)


@register_procedure
def two_stage(
    transfer: TermsLike,
    *,
    transfer_steps: int,
    transfer_lr: Schedule | float,
    task_steps: int,
    task_lr: Schedule | float,
    optimizer: Optimizer | None = None,
) -> tuple[Stage, Stage]:
    """First the transfer without labels, then the task with a fresh optimiser (Yim et al. 2017, Algorithm 1).

    >>> first, second = two_stage("fsp", transfer_steps=21, transfer_lr=1e-3, task_steps=64, task_lr=0.1)
    >>> first.name, first.needs_teacher, second.name, second.needs_teacher
    ('transfer', True, 'task', False)
    """
    first = stage("transfer", transfer_steps, transfer_lr, [_update(transfer=transfer)], optimizer)
    return (first, *alone(task_steps, task_lr, optimizer))


@register_procedure
def joint(
    transfer: TermsLike,
    *,
    steps: int,
    lr: Schedule | float,
    rule: Rule = Sum(),  # noqa: B008 (frozen)
    task: TermsLike = "labels",
    optimizer: Optimizer | None = None,
) -> tuple[Stage]:
    """Task and transfer in every step; ``rule`` says how their gradients are combined (Lee et al. 2018, section 3.2)."""
    return (stage("joint", steps, lr, [_update(task, transfer, rule)], optimizer),)


@register_procedure
def cyclic(
    transfers: Sequence[TermsLike], *, steps: int, lr: Schedule | float, optimizer: Optimizer | None = None
) -> tuple[Stage]:
    """Several transfers in turn, one per batch: update t runs transfer t mod n (Yeo et al. 2018).

    ``steps`` counts all updates, so that the budget equals that of a single transfer.
    """
    return (stage("transfer", steps, lr, [_update(transfer=terms) for terms in transfers], optimizer),)


@register_procedure
def blocks(
    transfers: Sequence[TermsLike], *, steps: int, lr: Schedule | float, optimizer: Optimizer | None = None
) -> tuple[Stage, ...]:
    """Several transfers one after another, for comparison with ``cyclic``: one stage each, with a fresh optimiser.

    They share ``steps`` as evenly as possible, and each runs through the whole learning rate schedule. Whatever a term
    draws for a stage, such as a shuffle, is drawn separately for each.

    Raises:
        RecipeError: there are no transfers, or fewer steps than transfers.

    >>> lr = Milestones({0: 0.1, 11: 0.01, 16: 0.001})
    >>> [(s.name, s.steps, s.players["student"].lr.milestones) for s in blocks(["fsp", "nst"], steps=21, lr=lr)]
    [('transfer-1', 10, {0: 0.1, 5: 0.01, 8: 0.001}), ('transfer-2', 11, {0: 0.1, 6: 0.01, 8: 0.001})]
    """
    count = len(transfers)
    if not 0 < count <= steps:
        raise RecipeError(
            f"blocks: {count} transfers cannot share {steps} steps; "
            "list at least one transfer, and at least one step for each."
        )
    lr = Constant(lr) if isinstance(lr, (int, float)) else lr
    shares = [(number + 1) * steps // count - number * steps // count for number in range(count)]
    return tuple(
        stage(f"transfer-{number}", share, lr.scaled(share / steps), [_update(transfer=terms)], optimizer)
        for number, (share, terms) in enumerate(zip(shares, transfers, strict=True), start=1)
    )


def schedule(*pairs: tuple[float, int]) -> tuple[int, Milestones]:
    """A paper's "0.1, 0.01 and 0.001 until 32k, 48k and 64k" as a number of steps and a learning rate schedule.

    >>> schedule((0.1, 32_000), (0.01, 48_000), (0.001, 64_000))
    (64000, Milestones(milestones={0: 0.1, 32000: 0.01, 48000: 0.001}))
    """
    starts = [0, *(until for _, until in pairs)]
    return starts[-1], Milestones({start: value for start, (value, _) in zip(starts, pairs, strict=False)})
