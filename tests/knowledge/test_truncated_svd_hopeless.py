"""Maps without unique singular vectors, oracle (c) 11, and the eigensolver behind the decomposition."""

from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from flowstill.knowledge import eigen
from flowstill.knowledge.svd import truncated_svd
from oracles import svd_maps
from oracles.svd_maps import hopeless, random_maps, spectrum, with_sign

ranks = pytest.mark.parametrize("rank", [1, 2, 4])
gradient = partial(svd_maps.gradient, truncated_svd)


@ranks
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(6, 4, 4), (12, 3, 2), (24, 6, 6), (40, 5, 6)], ids=str)
def test_11_hopeless_maps_have_finite_values_and_gradients(shape, dtype, rank):
    cases = hopeless(*shape, dtype)
    good = random_maps(8, *shape, dtype=dtype)
    for maps in (*cases.values(), torch.cat([*cases.values(), good])):
        maps = maps.clone().requires_grad_()
        sigma, vectors = truncated_svd(maps, rank)
        (vectors * torch.linspace(-1, 1, vectors[0].numel(), dtype=dtype).view(vectors.shape[1:])).sum().add(
            sigma.sum()
        ).backward()
        assert vectors.isfinite().all()
        assert maps.grad.isfinite().all()
        assert (sigma.diff(dim=1) <= 0).all()
        norms = vectors.norm(dim=1)
        assert torch.allclose(norms, (norms > 0.5).to(dtype), atol=1e-5)


@ranks
@pytest.mark.parametrize("shape", [(6, 4, 4), (40, 5, 6)], ids=str)
def test_11_hopeless_maps_do_not_affect_others_in_the_batch(shape, rank):
    good = random_maps(8, *shape)
    everyone = torch.cat([*hopeless(*shape, torch.float64).values(), good])
    grads = torch.randn(len(everyone), shape[0], rank, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alone = gradient(good, rank, grads[-8:])
    torch.testing.assert_close(gradient(everyone, rank, grads)[-8:], alone, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shape", [(6, 4, 4), (12, 3, 2), (24, 6, 6), (40, 5, 6)], ids=str)
def test_11_vectors_without_energy_are_zero(shape):
    for dtype in (torch.float64, torch.float32):
        sigma, vectors = truncated_svd(random_maps(4, *shape, dtype=dtype, ranks=2), 4)
        assert (vectors[..., :2].norm(dim=1) - 1).abs().max() < 1e-5
        assert (vectors[..., 2:] == 0).all()
        assert (sigma[:, 2:] < 1e-4 * sigma[:, :1]).all()


@pytest.mark.parametrize("shape", [(6, 4, 4), (12, 3, 2), (30, 6, 6), (40, 5, 6)], ids=str)
def test_11_the_span_of_repeated_singular_values_has_its_gradient(shape):
    # v_1, v_2 are not determined, but the projection on them is; its true gradient needs the 1/0 terms to cancel.
    maps = spectrum([2.0, 2.0, 1.0, 0.5, 0.3], *shape).requires_grad_()

    def projection(maps):
        vectors = truncated_svd(maps, 2)[1]
        return vectors @ vectors.mT

    assert gradcheck(projection, maps, fast_mode=True)


@pytest.mark.parametrize("shape", [(6, 4, 4), (12, 3, 2), (40, 5, 6)], ids=str)
def test_11_only_maps_with_zero_squares_count_as_zero(shape):
    for dtype, small in ((torch.float32, 1e-12), (torch.float64, 1e-25)):
        maps = random_maps(3, *shape, dtype=dtype)
        sigma, vectors = truncated_svd(maps, 2)
        faint_sigma, faint = truncated_svd(maps * small, 2)
        torch.testing.assert_close(faint_sigma / small, sigma)
        torch.testing.assert_close(with_sign(faint, vectors), vectors, rtol=0, atol=1e-4)
    assert (truncated_svd(maps.float() * 1e-25, 2)[1] == 0).all()


def test_nans_stay_in_their_image():
    for shape in [(6, 4, 4), (40, 5, 6)]:
        maps = random_maps(3, *shape, dtype=torch.float32)
        maps[1, 2, 0, 0] = torch.nan
        maps = maps.requires_grad_()
        sigma, vectors = truncated_svd(maps, 2)
        vectors.square().sum((1, 2))[[0, 2]].sum().backward()
        assert sigma[1].isnan().all()
        assert vectors[1].isnan().all()
        assert vectors[[0, 2]].isfinite().all()
        assert maps.grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("size", [16, 40, 65])
def test_block_iteration_finds_what_a_full_decomposition_finds(size, count):
    generator = torch.Generator().manual_seed(0)
    decay = torch.logspace(0, -2, size, dtype=torch.float64)
    values = [
        decay,
        decay.clone(),
        torch.ones(size, dtype=torch.float64),
        torch.zeros(size, dtype=torch.float64),
        torch.linspace(1, 0.9, size, dtype=torch.float64),
        decay.clone(),
    ]
    values[1][count - 1 : count + 2] = values[1][count - 1]  # the last that is wanted, three times over
    values[5][3:] = 0
    basis = torch.linalg.qr(torch.randn(len(values), size, size, generator=generator, dtype=torch.float64))[0]
    values = torch.stack(values)
    values = values / values.sum(1, keepdim=True).clamp_min(1e-30)
    gram = basis @ (values[:, :, None] * basis.mT)
    found, rows = eigen.leading_pairs(gram, count)
    torch.testing.assert_close(found[:, :count], values[:, :count], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(
        rows @ rows.mT, torch.eye(rows.shape[1], dtype=torch.float64).expand(len(values), -1, -1)
    )
    wanted = rows[:, :count]
    assert (wanted @ gram - found[:, :count, None] * wanted).norm(dim=2).max() < 1e-13


def test_damped_inverse_is_the_inverse_on_the_rest():
    gram = random_maps(12, 30, 6, 6).flatten(2)
    gram = gram @ gram.mT
    gram = gram / gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    values, rows = eigen.leading_pairs(gram, 3)
    assert rows.shape[1] < 30
    right = torch.randn(12, 3, 30, dtype=torch.float64)
    right = right - (right * rows[:, :3]).sum(2, keepdim=True) * rows[:, :3]
    damping = torch.full((12, 1, 1), 1e-12, dtype=torch.float64)
    solved = eigen.damped_inverse(gram, values, rows, right, damping, torch.zeros(12, 3, 1, dtype=torch.float64))
    for j in range(3):
        shifted = values[:, j, None, None] * torch.eye(30, dtype=torch.float64) - gram
        expected = torch.linalg.pinv(shifted, hermitian=True, rtol=1e-11) @ right[:, j, :, None]
        torch.testing.assert_close(solved[:, j], expected[..., 0], rtol=1e-8, atol=1e-8)


def test_double_precision_takes_over_if_single_precision_fails(monkeypatch):
    gram = random_maps(3, 6, 2, 2).flatten(2)
    gram = (gram @ gram.mT).float()
    plain = torch.linalg.eigh

    def gives_up(matrices):
        if matrices.dtype == torch.float32:
            raise torch.linalg.LinAlgError("failed to converge")
        return plain(matrices)

    monkeypatch.setattr(torch.linalg, "eigh", gives_up)
    values, rows = eigen.all_pairs(gram)
    assert values.dtype == rows.dtype == torch.float32
    assert (values.diff(dim=1) <= 0).all()
    torch.testing.assert_close(rows.mT @ (values[..., None] * rows), gram, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rows @ rows.mT, torch.eye(6).expand(3, 6, 6), rtol=0, atol=1e-5)
