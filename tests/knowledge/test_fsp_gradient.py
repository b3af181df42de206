"""The gradient of FSP matrices: in each map's type and memory layout, as exact as these allow."""

from itertools import product

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from flowstill.knowledge.fsp import fsp_loss, fsp_matrix
from oracles.fsp_checks import draw

FORMATS = [torch.contiguous_format, torch.channels_last]
HALF = [torch.bfloat16, torch.float16]


def by_hand(front, back, weight):
    """d sum(weight * G) of both maps of one size, in float64, one product after the other."""
    front, back = front.double(), back.double()
    height, width = front.shape[2:]
    gradients = torch.zeros_like(front), torch.zeros_like(back)
    for i, j, s, t in product(range(front.shape[1]), range(back.shape[1]), range(height), range(width)):
        gradients[0][:, i, s, t] += weight[:, i, j] * back[:, j, s, t] / (height * width)
        gradients[1][:, j, s, t] += weight[:, i, j] * front[:, i, s, t] / (height * width)
    return gradients


@pytest.mark.parametrize("size", [(3, 5, 4, 6), (8, 6, 1, 2)], ids=["larger maps", "larger matrix"])
@pytest.mark.parametrize("of_back", FORMATS)
@pytest.mark.parametrize("of_front", FORMATS)
@pytest.mark.parametrize(
    ("front_type", "back_type", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-13),
        (torch.float32, torch.float32, 1e-6),
        (torch.float64, torch.float32, 1e-6),
        (torch.bfloat16, torch.bfloat16, 6e-3),
        (torch.bfloat16, torch.float32, 4e-3),
        (torch.float16, torch.float16, 1e-3),
    ],
)
def test_each_map_gets_its_own_kind_of_gradient(front_type, back_type, tolerance, of_front, of_back, size):
    m, n, height, width = size
    front = draw(2, m, height, width).to(front_type).contiguous(memory_format=of_front).requires_grad_()
    back = draw(2, n, height, width, seed=1).to(back_type).contiguous(memory_format=of_back).requires_grad_()
    weight = draw(2, m, n, seed=2) - 0.5
    matrix = fsp_matrix(front, back)
    found = torch.autograd.grad((matrix * weight.to(matrix.dtype)).sum(), (front, back))
    for maps, gradient, exact in zip((front, back), found, by_hand(front.detach(), back.detach(), weight), strict=True):
        assert gradient.dtype == maps.dtype
        assert gradient.stride() == maps.stride()
        assert float((gradient.double() - exact).norm() / exact.norm()) < tolerance


@pytest.mark.parametrize("dtype", HALF)
def test_a_small_gradient_is_not_lost_in_half_precision(dtype):
    """Those of a mean over a batch are small: float16 ends at 6e-8."""
    maps = torch.ones(1, 2, 2, 2, dtype=dtype).requires_grad_()
    other = torch.full((1, 2, 2, 2), 1000.0, dtype=dtype)
    (found,) = torch.autograd.grad(fsp_matrix(maps, other).sum() * 1e-9, maps)
    assert found.double() == pytest.approx(torch.full((1, 2, 2, 2), 1e-9 * 2 * 1000 / 4), rel=0.2)


def test_a_map_with_itself_gets_both_parts():
    maps = draw(2, 3, 4, 4).requires_grad_()
    (found,) = torch.autograd.grad(fsp_matrix(maps, maps).sum(), maps)
    ones = torch.ones(2, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(found, sum(by_hand(maps.detach(), maps.detach(), ones)))


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_no_gradient_is_computed_for_a_map_without_one(wanted):
    maps = [draw(2, 3, 4, 4, seed=n).requires_grad_(wants) for n, wants in enumerate(wanted)]
    fsp_matrix(*maps).sum().backward()
    assert [one.grad is not None for one in maps] == list(wanted)


def test_only_the_maps_are_kept():
    front, back = (draw(2, 3, 4, 4, seed=n).bfloat16().requires_grad_() for n in (0, 1))
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda tensor: tensor):
        fsp_matrix(front, back)
    assert set(kept) == {front.data_ptr(), back.data_ptr()}


def test_function_transforms():
    """Per-image gradients by vmap are those of each image alone."""
    front, back = draw(4, 2, 3, 3), draw(4, 3, 3, 3, seed=1)

    def loss(one, other):
        return fsp_matrix(one[None], other[None]).square().sum()

    gradient = torch.func.vmap(torch.func.grad(loss))(front, back)
    for number in range(4):
        torch.testing.assert_close(gradient[number], torch.func.grad(loss)(front[number], back[number]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4)])
def test_empty_inputs_give_empty_outputs(shape, dtype):
    """No images: a matrix each of none. No channels: no rows."""
    front, back = torch.zeros(shape, dtype=dtype).requires_grad_(), torch.ones(shape[0], 5, 4, 4, dtype=dtype)
    matrix = fsp_matrix(front, back)
    assert matrix.shape == (shape[0], shape[1], 5)
    matrix.sum().backward()
    assert front.grad.shape == shape
    assert fsp_loss([matrix[:0]], [matrix[:0]], [1.0]).isnan()
