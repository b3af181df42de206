"""Distilled feature vectors and the distance between two networks' (Lee et al. 2018, Eq. 9-11)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from flowstill.transfer.knowledge import without_autocast

Ends = tuple[Tensor, Tensor]  # weighted singular vectors of a module's front and back maps: (B, D_F, k) and (B, D_B, k)


def rbf(front: Tensor, back: Tensor, beta: float = 8.0) -> Tensor:
    """Distilled feature vectors, Eq. 9-10: how each front entry relates to each back entry.

    DFV[b, m, n, l] = exp(-(front[b, m, l] - back[b, n, l])^2 / beta)

    Args:
        front: (B, D_F, k), weighted singular vectors of the front map.
        back: (B, D_B, k).

    Returns:
        (B, D_F, D_B, k), in [exp(-4 / beta), 1] as the entries of unit vectors lie in [-1, 1].

    >>> rbf(torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[1.0]]]), beta=1.0).flatten()
    tensor([1.0000, 0.3679])
    """
    return torch.exp((front[:, :, None] - back[:, None]).square() / -beta)


def dfv_loss(student: Ends, teacher: Ends, beta: float = 8.0, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """One module's part of Eq. 11: ||DFV_T - DFV_S||^2 / 2, summed over the batch or averaged.

    Large vectors of ``rbf`` are never built. exp(-(f - g)^2 / beta) is exp(-f^2 / beta) exp(-g^2 / beta) sum_j (2 f g /
    beta)^j / j!: for each j a factor of f and a factor of g. As entries lie in [-1, 1], J = 7 terms are exact in
    float32 at beta 8. The norm of a difference of sums of products follows from products of the factors, which hold 2 J
    (D_F + D_B) numbers instead of D_F D_B. It is also more precise, as no numbers near 1 are subtracted.

    Args:
        student: its weighted vectors of the front and the back map, (B, D_F, k) and (B, D_B, k), entries in [-1, 1].
        teacher: the same of the teacher.
        beta: width of the radial basis function.
        reduction: over the batch, ``sum`` or ``mean``.

    >>> one, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    >>> float(dfv_loss((zero, zero), (zero, one), beta=8.0)), math.expm1(-1 / 8) ** 2 / 2
    (0.0069..., 0.0069...)
    """
    total = _distance(student, teacher, beta) / 2
    return total / max(1, len(student[0])) if reduction == "mean" else total


def _distance(student: Ends, teacher: Ends, beta: float) -> Tensor:
    """||DFV_T - DFV_S||^2."""
    (front, back), (front_t, back_t) = student, teacher
    m, n = front.shape[1], back.shape[1]
    most = m * n // max(1, 2 * (m + n))  # with this many the factors would not be smaller
    terms = _terms(beta, torch.finfo(front.dtype).eps, most)
    if terms == most:
        return (rbf(front_t, back_t, beta) - rbf(front, back, beta)).square().sum()
    f, g, f_t, g_t = (_factors(one, beta, terms) for one in (front, back, front_t, back_t))
    first = torch.eye(terms, dtype=f.dtype, device=f.device)[0]  # the 1 subtracted from the factor of j = 0
    # S - T = f g' - f_t g_t' = (f - f_t) g' + f_t (g - g_t)'
    fronts, backs = torch.cat([f - f_t, f_t + first], 3), torch.cat([g + first, g - g_t], 3)
    with without_autocast(front.device):
        return ((fronts.mT @ fronts) * (backs.mT @ backs)).sum()


def _terms(beta: float, eps: float, most: int) -> int:
    """The number of terms of exp(2 f g / beta) that leave less than ``eps`` of what varies in it, or ``most`` if that
    is fewer.

    Entries lie in [-1, 1].

    >>> _terms(8.0, 1e-7, 100), _terms(8.0, 1e-7, 4), _terms(1e-9, 1e-7, 100)
    (7, 4, 100)
    """
    count, rest = 0, 2 / beta  # the logarithm of a bound: e^x x^J / J! for x = 2 / beta
    bar = math.log(eps) + min(0.0, math.log(2) - math.log(beta))
    while rest > bar and count < most:
        count += 1
        rest += math.log(2) - math.log(beta) - math.log(count)
    return count


def _factors(vectors: Tensor, beta: float, terms: int) -> Tensor:
    """(B, D, k) -> (B, k, D, terms): exp(-f^2 / beta) f^j (2 / beta)^(j / 2) / sqrt(j!), minus 1 for j = 0."""
    first = torch.expm1(vectors.square() / -beta)
    factors, last = [first], 1 + first
    for j in range(1, terms):
        last = last * vectors * math.sqrt(2 / (beta * j))
        factors.append(last)
    return torch.stack(factors, 3).transpose(1, 2)
