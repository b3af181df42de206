"""Leading eigenpairs of many small Gram matrices, and the damped inverse that their gradient needs.

``torch.linalg.eigh`` takes one matrix after another and finds all its n pairs. For the leading few of a batch, block
iteration is as accurate and on a CPU two (n = 16) to eight times (n = 64, one pair) as fast. Vectors are rows here:
``rows @ gram`` reads the matrices in memory order; ``gram @ columns`` takes several times as long.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 16  # below this size all pairs cost no more than the leading ones
CYCLES, DEGREE = 8, 4  # of the block iteration
LONGEST = 100  # conjugate gradient steps


def leading_pairs(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues and their vectors, exact up to rounding.

    Args:
        gram: (N, n, n), positive semidefinite, finite, with a trace of about 1 (or 0).
        count: number of pairs wanted, 1 to n.

    Returns:
        values (N, r) descending and orthonormal rows (N, r, n), r at least ``count``. If r = n they are all pairs. If
            not, the first ``count`` are eigenpairs and the rest are only approximate.
    """
    size, block = gram.shape[-1], count + 4
    if gram.device.type != "cpu" or size < SMALLEST or 3 * block > size:
        return all_pairs(gram)
    return _iterated(gram, count, block)


def all_pairs(gram: Tensor) -> tuple[Tensor, Tensor]:
    """All eigenvalues (N, n), descending, and their vectors as rows (N, n, n)."""
    try:
        values, columns = torch.linalg.eigh(gram)
    # In single precision LAPACK sometimes fails on a matrix with many zeros.
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # missing from torch's annotations
        wide, columns = torch.linalg.eigh(gram.double())
        values, columns = wide.to(gram.dtype), columns.to(gram.dtype)
    return values.flip(1), columns.mT.flip(1)


def _iterated(gram: Tensor, count: int, block: int) -> tuple[Tensor, Tensor]:
    """Subspace iteration with Chebyshev polynomials; matrices that have not converged are decomposed fully."""
    rows = _start(gram, block)
    for _ in range(2):
        rows = _orthonormal(rows @ gram)
    images = rows @ gram
    cut = (images * rows).sum(2).amin(1)
    # Rounding leaves a residual of 2 to 6 eps; a vector's error is its residual over the gap to the next value.
    tolerance = torch.finfo(gram.dtype).eps * max(8.0, gram.shape[-1] ** 0.5)
    for cycle in range(CYCLES):
        rows = _orthonormal(_chebyshev(gram, rows, cut, DEGREE))
        images = rows @ gram
        if cycle == 0 and count > 1:  # too early to have converged
            cut = (images * rows).sum(2).amin(1)
            continue
        values, rows, images = _ritz(rows, images)
        residual = torch.linalg.vector_norm(images - values[..., None] * rows, dim=2)[:, :count]
        unconverged = (residual > tolerance * values[:, :1]).any(1)
        if int(unconverged.sum()) * 16 <= len(
            gram
        ):  # decomposing the last few fully costs less than another cycle for all
            break
        cut = values[:, -1]
    if unconverged.any():
        whole = all_pairs(gram[unconverged])
        values[unconverged], rows[unconverged] = whole[0][:, :block], whole[1][:, :block]
    return values, rows


def _start(gram: Tensor, block: int) -> Tensor:
    """The same random rows for every matrix and every call."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(block, gram.shape[-1], generator=generator, dtype=gram.dtype)
    return rows.expand(len(gram), -1, -1)


def _orthonormal(rows: Tensor) -> Tensor:
    orthonormal: Tensor = torch.linalg.qr(rows.mT)[0].mT
    return orthonormal


def _chebyshev(gram: Tensor, rows: Tensor, cut: Tensor, degree: int) -> Tensor:
    """T(gram) on the rows: at most 1 for eigenvalues in [0, cut], growing as fast as possible above.

    Args:
        cut: (N,), an upper estimate of the largest eigenvalue that is not wanted.
    """
    # A lower bound keeps the polynomial finite where a matrix has fewer nonzero eigenvalues than rows.
    twice = gram * (4 / cut.clamp_min(1e-3 / gram.shape[-1]))[:, None, None]
    twice.diagonal(dim1=1, dim2=2).sub_(2)  # 2 x, for x = 2 gram / cut - 1
    previous, current = rows, torch.baddbmm(rows, rows, twice, beta=0, alpha=0.5)
    for _ in range(degree - 1):
        previous, current = current, torch.baddbmm(previous, current, twice, beta=-1)
    return current


def _ritz(rows: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best approximate eigenpairs in the span of the orthonormal rows: values, rows, rows @ gram."""
    values, mixing = all_pairs(images @ rows.mT)
    return values, mixing @ rows, mixing @ images


def damped_inverse(
    gram: Tensor, values: Tensor, rows: Tensor, right: Tensor, damping: Tensor, offset: Tensor
) -> Tensor:
    """Row j times f(value_j - gram), where f(x) = (x - offset_j) / (x^2 + damping^2) is 1 / x except for small x.

    Args:
        gram: (N, n, n).
        values: (N, r), of ``leading_pairs``.
        rows: (N, r, n), of ``leading_pairs``.
        right: (N, k, n), k at most the ``count`` passed to ``leading_pairs``.
        damping: (N, 1, 1).
        offset: (N, k, 1), of the order of damping^2.

    Returns:
        (N, k, n).
    """
    count = right.shape[1]
    if rows.shape[1] == rows.shape[2]:
        return _on_pairs(values, rows, values[:, :count], right, damping, offset)
    solved, settled = _on_complement(gram, values, rows, right)
    solved += _on_pairs(values[:, :count], rows[:, :count], values[:, :count], right, damping, offset)
    # Where the last wanted value and the next nearly coincide, damping matters outside the wanted pairs too.
    hard = ~settled | (values[:, count - 1] - values[:, count] < 30 * damping[:, 0, 0])
    if hard.any():
        whole = all_pairs(gram[hard])
        solved[hard] = _on_pairs(*whole, values[hard, :count], right[hard], damping[hard], offset[hard])
    return solved


def _on_pairs(values: Tensor, rows: Tensor, at: Tensor, right: Tensor, damping: Tensor, offset: Tensor) -> Tensor:
    """f(at_j - gram) within the span of the given eigenpairs."""
    gap = at[:, :, None] - values[:, None, :]
    return (right @ rows.mT * ((gap - offset) / (gap.square() + damping.square()))) @ rows


def _on_complement(gram: Tensor, values: Tensor, rows: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """1 / (value_j - gram) outside the first k pairs, by conjugate gradients; and which matrices have converged, (N,)."""
    count, limits = right.shape[1], torch.finfo(gram.dtype)
    wanted, near, at = rows[:, :count], rows[:, count:], values[:, :count, None]
    # Without its first k pairs the Gram matrix lies below every value_j, so the systems are positive definite.
    rest = torch.baddbmm(gram, (wanted * at).mT, wanted, alpha=-1)
    right = right - right @ wanted.mT @ wanted
    unit = right.abs().amax(2, keepdim=True).clamp_min(limits.tiny)  # the squares of a small gradient would underflow
    right = right / unit
    # The approximate pairs are a good first guess for the slowest directions.
    solved = (right @ near.mT / (at - values[:, None, count:]).clamp_min(limits.eps)) @ near
    residual = right - torch.baddbmm(at * solved, solved, rest, alpha=-1)
    direction, size = residual, residual.square().sum(2, keepdim=True)
    goal = (8 * limits.eps) ** 2 * right.square().sum(2, keepdim=True)
    for _ in range(LONGEST):
        if (size <= goal).all():
            break
        image = torch.baddbmm(at * direction, direction, rest, alpha=-1)
        step = size / (direction * image).sum(2, keepdim=True).clamp_min(limits.tiny)
        solved = torch.addcmul(solved, step, direction)
        residual = torch.addcmul(residual, step, image, value=-1)
        before, size = size, residual.square().sum(2, keepdim=True)
        direction = torch.addcmul(residual, size / before.clamp_min(limits.tiny), direction)
    settled = (size <= 1e3 * goal).all(dim=1)[:, 0]
    return unit * (solved - solved @ wanted.mT @ wanted), settled
