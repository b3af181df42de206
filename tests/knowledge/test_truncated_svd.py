"""Truncated SVD and its gradient against the paper: oracles (c) 1-4 and 12, and the error of float32."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from flowstill.errors import ShapeError
from flowstill.knowledge.svd import truncated_svd
from oracles import svd as oracle
from oracles import svd_maps
from oracles.svd_maps import columns, random_maps, with_sign

# (D, H, W): tall, wide, square; the last three go through the block iteration, if of low enough rank
SHAPES = {
    "tall": (5, 4, 3),
    "wide": (9, 3, 2),
    "square": (6, 2, 3),
    "large tall": (24, 5, 6),
    "large wide": (26, 4, 6),
    "large square": (24, 4, 6),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
ranks = pytest.mark.parametrize("rank", [1, 2, 4])
gradient = partial(svd_maps.gradient, truncated_svd)


@ranks
@shapes
def test_values_and_vectors_match_torchs_svd(shape, rank):
    maps = random_maps(3, *shape)
    sigma, vectors = truncated_svd(maps, rank)
    for b in range(3):
        expected_sigma, expected = oracle.truncated_svd(maps[b].numpy(), rank)
        np.testing.assert_allclose(sigma[b], expected_sigma, rtol=1e-12)
        overlap = [abs(oracle.dot(v, w)) for v, w in zip(columns(vectors[b]), expected, strict=True)]
        np.testing.assert_allclose(overlap, 1, atol=1e-12)
        np.testing.assert_allclose(vectors[b].norm(dim=0), 1, atol=1e-12)


def test_1_gradient_of_a_diagonal_matrix():
    a, b = 3.0, 2.0
    maps = torch.tensor([[[[a, 0.0]], [[0.0, b]]]], dtype=torch.float64, requires_grad=True)
    _, vectors = truncated_svd(maps, 1)
    (vectors[0, 1, 0] * vectors[0, 0, 0].detach().sign()).backward()
    expected = torch.tensor([[0.0, a], [b, 0.0]], dtype=torch.float64) / (a**2 - b**2)
    torch.testing.assert_close(maps.grad[0, :, 0, :].T, expected, rtol=1e-12, atol=1e-12)


def test_2_one_position():
    maps = random_maps(4, 7, 1, 1) + 0.1
    m, grads = maps[..., 0], random_maps(4, 7, 1, 1, seed=1)[..., 0]
    v = m / m.norm(dim=1, keepdim=True)
    torch.testing.assert_close(with_sign(truncated_svd(maps, 3)[1]), v)
    expected = (grads - v * (v * grads).sum(1, keepdim=True)) / m.norm(dim=1, keepdim=True)
    torch.testing.assert_close(gradient(maps, 1, grads)[..., 0], expected)


@ranks
@shapes
def test_3_gradcheck(shape, rank):
    maps = random_maps(1, *shape).requires_grad_()

    def both(maps):
        sigma, vectors = truncated_svd(maps, rank)
        return sigma, with_sign(vectors)

    assert gradcheck(both, maps, fast_mode=math.prod(shape) > 100)


@ranks
@pytest.mark.parametrize("shape", [(7, 4, 3), (12, 3, 3), (24, 5, 6), (30, 4, 6)], ids=str)
def test_3_gradcheck_of_rank_deficient_maps(shape, rank):
    maps = random_maps(1, *shape, ranks=4).requires_grad_()
    assert gradcheck(lambda maps: with_sign(truncated_svd(maps, rank)[1]), maps, fast_mode=math.prod(shape) > 100)


@ranks
@shapes
def test_3_gradient_is_the_perturbation_formula(shape, rank):
    maps = random_maps(2, *shape)
    vectors = truncated_svd(maps, rank)[1]
    grads = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = gradient(maps, rank, grads, vectors)
    for b in range(2):
        expected = oracle.svd_gradient(maps[b].numpy(), columns(vectors[b]), columns(grads[b]))
        assert np.linalg.norm(gradients[b] - expected) < 1e-9 * np.linalg.norm(expected)


@ranks
@pytest.mark.parametrize("shape", [(5, 4, 3), (6, 2, 3), (40, 9, 7), (64, 8, 8)], ids=str)
def test_3_gradient_is_autograds_where_that_is_valid(shape, rank):
    maps = random_maps(3, *shape)
    vectors = truncated_svd(maps, rank)[1]
    grads = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaf = maps.clone().requires_grad_()
    through_eigh = torch.linalg.eigh(leaf.flatten(2) @ leaf.flatten(2).mT)[1].flip(2)[..., :rank]
    through_svd = torch.linalg.svd(leaf.flatten(2).mT, full_matrices=False)[2].mT[..., :rank]
    gradients = gradient(maps, rank, grads, vectors)
    for other_vectors in (through_eigh, through_svd):
        expected = torch.autograd.grad((with_sign(other_vectors, vectors) * grads).sum(), leaf)[0]
        assert (gradients - expected).norm() < 1e-10 * expected.norm()


def test_3_gradient_of_the_singular_values_alone():
    maps = random_maps(2, 6, 4, 4).requires_grad_()
    sigma, _ = truncated_svd(maps, 6)
    nuclear = torch.linalg.matrix_norm(maps.flatten(2), "nuc").sum()
    torch.testing.assert_close(*(torch.autograd.grad(x, maps)[0] for x in (sigma.sum(), nuclear)))


@shapes
def test_4_gradient_is_orthogonal_to_the_map(shape):
    maps = random_maps(5, *shape)
    grads = torch.randn(5, shape[0], 3, dtype=torch.float64)
    result = gradient(maps, 3, grads)
    assert (
        (result * maps).sum((1, 2, 3)).abs() < 1e-10 * result.flatten(1).norm(dim=1) * maps.flatten(1).norm(dim=1)
    ).all()


@pytest.mark.parametrize("shape", [(5, 4, 3), (24, 6, 6)], ids=str)
def test_12_equations_1_and_2_are_zero_for_rank_1_on_tall_maps(shape):
    maps = random_maps(3, *shape)
    grads = torch.randn(3, shape[0], 1, dtype=torch.float64)
    assert (gradient(maps, 1, grads, gradient="paper") == 0).all()
    assert gradient(maps, 1, grads).abs().max() > 1e-3


@pytest.mark.parametrize("rank", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(6, 4, 4), (12, 3, 2), (6, 2, 3)], ids=str)
def test_12_equations_1_and_2_as_printed(shape, rank):
    maps = random_maps(2, *shape) - 0.3
    vectors = truncated_svd(maps, rank)[1]
    grads = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = gradient(maps, rank, grads, vectors, gradient="paper")
    for b in range(2):
        expected = oracle.paper_gradient(maps[b].numpy(), columns(vectors[b]), columns(grads[b]))
        np.testing.assert_allclose(gradients[b], expected, atol=1e-10)
    exact = gradient(maps, rank, grads, vectors)
    if rank == min(shape[0], shape[1] * shape[2]):
        torch.testing.assert_close(gradients, exact, rtol=1e-8, atol=1e-9)
    else:
        assert (gradients - exact).norm() > 0.01 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(16, 16, 16), (64, 8, 8), (128, 4, 8)], ids=str)
def test_float32_and_half_inputs_are_as_accurate_as_float32_allows(shape, dtype):
    maps = random_maps(16, *shape, seed=3, dtype=dtype)  # half precision is the input, not an error
    sigma, vectors = truncated_svd(maps, 2)
    assert sigma.dtype == vectors.dtype == torch.float32
    grads = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact_sigma, exact = truncated_svd(maps.double(), 2)
    values = torch.linalg.svdvals(maps.double().flatten(2))[:, :3].square()
    gap = torch.stack([values[:, 0] - values[:, 1], (values[:, :2] - values[:, 1:]).amin(1)], 1) / values[:, :1]
    assert ((sigma - exact_sigma) / exact_sigma).abs().max() < 3e-6
    error = (with_sign(vectors, exact) - exact).norm(dim=1)
    assert (error < 4e-6 / gap).all()
    gradients, reference = (
        gradient(m, 2, grads.to(m.dtype) if m.dtype != torch.float64 else grads, exact.to(vectors.dtype))
        for m in (maps.float(), maps.double())
    )
    relative = (gradients - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
    assert (relative < 1e-5 / gap[:, 1]).all()
    assert truncated_svd(maps.requires_grad_(), 2)[1].sum().backward() is None
    assert maps.grad.dtype == dtype


def test_memory_layout_does_not_matter():
    maps = random_maps(3, 24, 5, 6)
    for a, b in zip(
        truncated_svd(maps, 3), truncated_svd(maps.contiguous(memory_format=torch.channels_last), 3), strict=True
    ):
        torch.testing.assert_close(a, b)


@ranks
@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_small_and_large_gradients_do_not_vanish_or_overflow(factor, rank):
    maps = random_maps(3, 30, 6, 6, dtype=torch.float32)
    grads = torch.randn(3, 30, rank, generator=torch.Generator().manual_seed(1))
    plain = gradient(maps, rank, grads)
    torch.testing.assert_close(gradient(maps, rank, grads * factor) / factor, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("depth", [5, 30])
def test_an_empty_batch(depth):
    maps = torch.zeros(0, depth, 6, 6, requires_grad=True)
    sigma, vectors = truncated_svd(maps, 2)
    vectors.sum().backward()
    assert (sigma.shape, vectors.shape, maps.grad.shape) == ((0, 2), (0, depth, 2), maps.shape)


def test_errors_name_the_problem():
    with pytest.raises(ShapeError, match=r"Received: \(2, 3, 4\)"):
        truncated_svd(torch.zeros(2, 3, 4), 1)
    with pytest.raises(ShapeError, match=r"\(2, 3, 0, 4\)"):
        truncated_svd(torch.zeros(2, 3, 0, 4), 1)
    with pytest.raises(ValueError, match="rank 0"):
        truncated_svd(torch.zeros(2, 3, 4, 4), 0)
    with pytest.raises(ValueError, match="'exact' or 'paper'"):
        truncated_svd(torch.zeros(2, 3, 4, 4), 1, gradient="papr")
