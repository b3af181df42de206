"""How the task's gradient and the transfer's gradient meet, once both are reduced over the processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Gradients = Sequence[Tensor | None]


def clip_per_variable(
    task: Gradients, transfer: Gradients, share: float, against: Gradients | None = None
) -> list[Tensor | None]:
    """``g_i = task_i + transfer_i * min(1, share * |task_i| / |transfer_i|)`` for every variable i.

    Lee et al. (2018), section 3.2, as their published training code computes it: ``share`` is the sigmoid of the epoch,
    and the norm is taken of the task's gradient *with* its L2 term, which is given as ``against``. Where the task has
    no gradient the transfer's is clipped to nothing; a zero transfer gradient stays zero. Shapes: each gradient has its
    variable's shape; None where a loss does not reach the variable.
    """
    against = task if against is None else against
    return [_meet(a, b, c, share) for a, b, c in zip(task, transfer, against, strict=True)]


def _meet(task: Tensor | None, transfer: Tensor | None, against: Tensor | None, share: float) -> Tensor | None:
    if task is None or transfer is None or against is None:
        return task
    bound = share * torch.linalg.vector_norm(against)
    return task + transfer * _at_most(bound, torch.linalg.vector_norm(transfer))


def _at_most(bound: Tensor, norm: Tensor) -> Tensor:
    """The factor that brings ``norm`` down to ``bound``, 1 where it is not above."""
    return torch.where(norm > bound, bound / norm, 1.0)


def clip_global(task: Gradients, transfer: Gradients, share: float) -> list[Tensor | None]:
    """The same with one norm over all variables that the transfer reaches."""
    factor = _at_most(share * _norm(task, transfer), _norm(transfer, transfer))
    return [_plus(a, b, factor) for a, b in zip(task, transfer, strict=True)]


def eq14_literal(task: Gradients, transfer: Gradients, epoch: float) -> list[Tensor | None]:
    """Eq. 13-14 as printed: a transfer gradient *smaller* than the task's is multiplied by 1/(1 + exp(p - tau)).

    tau is the ratio of the norms over all variables that the transfer reaches, p the epoch. Kept to compare with: it
    dims the transfer when it is small already, and to nothing as the epochs pass.
    """
    a, b = _norm(task, transfer), _norm(transfer, transfer)
    tau = a / b
    factor = torch.where((b < a) & (b > 0), torch.sigmoid(tau - epoch), 1.0)
    return [_plus(x, y, factor) for x, y in zip(task, transfer, strict=True)]


def sigmoid(epoch: float) -> float:
    """The share of the task's norm that the transfer may reach after ``epoch`` epochs: 0.5, 0.73, 0.88, ... 1."""
    return 1.0 / (1.0 + math.exp(-epoch))


def _norm(gradients: Gradients, among: Gradients) -> Tensor:
    """One L2 norm over the variables where ``among`` has a gradient."""
    norms = [
        torch.linalg.vector_norm(g)
        for g, here in zip(gradients, among, strict=True)
        if g is not None and here is not None
    ]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _plus(task: Tensor | None, transfer: Tensor | None, factor: Tensor) -> Tensor | None:
    if transfer is None:
        return task
    return transfer * factor if task is None else task + transfer * factor
