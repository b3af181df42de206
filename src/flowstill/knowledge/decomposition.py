"""Truncated singular value decomposition of feature maps, with a correct gradient that is always finite.

Lee, Kim, Song: "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018, section 3.1. A
map of D channels over H W positions is a matrix M (H W x D) = U S V^T. Its first k right-singular vectors say in which
directions of feature space the image has most energy, whatever the map's size.

The gradient of a loss through v_j, with p_j = (I - v_j v_j^T) dL/dv_j and z_j = (s_j^2 I - M^T M)^+ p_j, is

    dL/dM = sum_j  s_j u_j z_j^T + (M z_j) v_j^T + dL/ds_j u_j v_j^T

whatever is cut off. The paper's own Eq. 1-2 sums over the k retained vectors only. It equals this gradient if all min(H
W, D) vectors are retained and differs otherwise: for k = 1 and H W > D it is identically zero.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flowstill.errors import ShapeError
from flowstill.knowledge.eigen import damped_inverse, leading_pairs
from flowstill.transfer.knowledge import without_autocast

Gradient = Literal["exact", "paper"]

# The eps of the damping x / (x^2 + (eps s_1^2)^2). On maps of trained networks, 1e-4 in float32 loses up to a third of
# the gradient of five vectors, 1e-6 less than a thousandth; the eigenvalues are accurate to a few 1e-7 s_1^2.
_DAMPING = {torch.float64: 1e-10, torch.float32: 1e-6}
# A singular value below this share of the largest consists of rounding errors and counts as zero.
_NEGLIGIBLE = {torch.float64: 1e-6, torch.float32: 1e-5}


def truncated_svd(maps: Tensor, rank: int, *, gradient: Gradient = "exact") -> tuple[Tensor, Tensor]:
    """The largest singular values of each map and their right-singular vectors.

    Half precision is read as it comes and decomposed in float32, also under autocast; float64 stays float64. The
    decomposition goes through the smaller of the Gram matrices M^T M and M M^T, so a vector's error is about the
    rounding unit times s_1^2 / (s_j^2 - s_(j+1)^2). A vector's sign is arbitrary.

    Singular values that coincide, or vanish, have no vectors of their own and no gradient. Where two nearly coincide
    the gradient is damped: 1 / x becomes x / (x^2 + (eps s_1^2)^2) for x = s_j^2 - s_i^2, with eps = 1e-6 (1e-10 in
    float64). A vector without energy (a map of zeros; fewer independent channels than ``rank``) is returned as zeros
    and has no gradient.

    Args:
        maps: (N, D, H, W).
        rank: how many, at least 1; capped at the map's number of channels and of positions.
        gradient: ``exact``, or ``paper`` for Eq. 1-2 of Lee et al. as printed, for comparison; the paper gives none for
            the singular values.

    Returns:
        sigma (N, k), descending, and vectors (N, D, k), k = min(rank, H W, D); float32, or float64 for float64 maps.

    Raises:
        ShapeError: not (N, D, H, W), or empty.
        ValueError: a rank below 1, or an unknown gradient.

    >>> maps = torch.tensor([[[[3.0, 0.0]], [[0.0, 2.0]]]])  # channel 0 lives at the first position, channel 1 at the second
    >>> sigma, vectors = truncated_svd(maps, 1)
    >>> sigma, vectors.abs().flatten()
    (tensor([[3.]]), tensor([1., 0.]))
    """
    if maps.ndim != 4 or 0 in maps.shape[1:]:
        raise ShapeError(
            "A singular value decomposition needs non-empty maps (N, channels, height, width). "
            f"Received: {tuple(maps.shape)}."
        )
    if rank < 1:
        raise ValueError(f"Expected a rank of at least 1. Received: rank {rank}.")
    if gradient not in ("exact", "paper"):
        raise ValueError(f"Expected gradient 'exact' or 'paper'. Received: {gradient!r}.")
    matrices = maps.to(torch.promote_types(maps.dtype, torch.float32)).flatten(2)
    with without_autocast(maps.device):
        sigma, vectors = _TruncatedSVD.apply(matrices, min(rank, *matrices.shape[1:]), gradient)
    return sigma, vectors


class _TruncatedSVD(torch.autograd.Function):
    """(N, D, P), the paper's M transposed -> sigma (N, k), vectors (N, D, k)."""

    @staticmethod
    def forward(ctx: Any, matrices: Tensor, rank: int, gradient: Gradient) -> tuple[Tensor, Tensor]:
        ctx.wide = matrices.shape[2] < matrices.shape[1]
        ctx.gradient = gradient
        gram = matrices.mT @ matrices if ctx.wide else matrices @ matrices.mT
        trace = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        finite = trace.isfinite()
        limits = torch.finfo(gram.dtype)
        energy = torch.where(finite, trace.clamp_min(limits.tiny / limits.eps), 1)
        if not finite.all():  # return NaN instead of failing in the eigensolver
            gram = torch.where(finite, gram, 0)
        gram = gram / energy
        values, rows = leading_pairs(gram, rank)
        inner = rows[:, :rank]
        # Eigenvalues are accurate to eps s_1^2. The norm of M v (or M^T u) is accurate to eps s_1, so it decides.
        outer = inner @ (matrices.mT if ctx.wide else matrices)
        norms = torch.linalg.vector_norm(outer, dim=2, keepdim=True)
        nonzero = (norms > _NEGLIGIBLE[gram.dtype] * norms[:, :1]) & (energy == trace)
        right = torch.where(nonzero, outer / norms if ctx.wide else inner, 0)
        sigma = norms[..., 0].cummin(1).values
        if not finite.all():
            sigma, right = torch.where(finite[..., 0], sigma, torch.nan), torch.where(finite, right, torch.nan)
        left = norms * inner if ctx.wide else outer  # sigma_j u_j
        ctx.save_for_backward(matrices, gram, energy, values, rows, norms, left, right)
        ctx.set_materialize_grads(False)
        return sigma, right.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sigma: Tensor | None, grad_vectors: Tensor | None) -> tuple[Tensor | None, None, None]:
        matrices, gram, energy, values, rows, norms, left, right = ctx.saved_tensors
        if grad_vectors is None:
            grad_vectors = torch.zeros_like(right).mT
        with without_autocast(matrices.device):
            if ctx.gradient == "paper":
                return _paper_gradient(norms, left, right, grad_vectors), None, None
            grad_rows = torch.where(right.any(2, keepdim=True), grad_vectors.mT, 0)
            across = grad_rows - (grad_rows * right).sum(2, keepdim=True) * right  # p_j
            # Never zero: a map of zeros would give zero times infinity.
            damping = _DAMPING[gram.dtype] * values[:, :1, None].clamp_min(torch.finfo(gram.dtype).eps)
            if ctx.wide:
                solved = _through_rows(matrices, gram, energy, values, rows, across, damping)
            else:
                solved = damped_inverse(gram, values, rows, across, damping, torch.zeros_like(norms)) / energy
            images = solved @ matrices  # M z_j
            if grad_sigma is not None:
                images = images + torch.where(norms > 0, grad_sigma[..., None] / norms, 0) * left
            return torch.cat([solved, right], 1).mT @ torch.cat([left, images], 1), None, None


def _through_rows(
    matrices: Tensor, gram: Tensor, energy: Tensor, values: Tensor, rows: Tensor, across: Tensor, damping: Tensor
) -> Tensor:
    """z_j where the Gram matrix is over the positions, M M^T.

    By Woodbury's identity (s_j^2 - M^T M)^-1 = (1 + M^T (s_j^2 - M M^T)^-1 M) / s_j^2, and the same damped. It needs no
    vectors of the discarded singular values, however small these are.
    """
    at = values[:, : across.shape[1], None].clamp_min(torch.finfo(gram.dtype).eps)
    solved = damped_inverse(gram, values, rows, across @ matrices / energy, damping, damping.square() / at)
    return at / (at.square() + damping.square()) * (across + solved @ matrices.mT) / energy


def _paper_gradient(norms: Tensor, left: Tensor, right: Tensor, grad_vectors: Tensor) -> Tensor:
    """Eq. 1-2 as printed, with i, j <= k; K is 0 where singular values are equal. Returns the transpose, (N, D, P)."""
    u = torch.where(right.any(2, keepdim=True), left / norms, 0).mT
    v, sigma = right.mT, torch.diag_embed(norms[..., 0])
    squares = norms.square()
    difference = squares - squares.mT
    k = torch.where(difference == 0, 0, 1 / difference)
    if u.shape[1] <= v.shape[1]:
        e = torch.where(norms.mT > 0, grad_vectors / norms.mT, 0)
        inside = torch.diag_embed((e * v).sum(1)) + 2 * _sym(k * (sigma @ v.mT @ e)) @ sigma
        return (u @ (e.mT - inside @ v.mT)).mT
    return (2 * u @ sigma @ _sym(k.mT * (v.mT @ grad_vectors)) @ v.mT).mT


def _sym(square: Tensor) -> Tensor:
    return (square + square.mT) / 2
