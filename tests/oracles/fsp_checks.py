"""What must hold of any FSP matrix and loss, as checks that take the implementation: matrix, loss, weights.

matrix(front, back) -> (N, m, n); loss(student_matrices, teacher_matrices, alphas) -> scalar;
weights(weighting, shapes) -> alphas. A check that fails raises AssertionError.
"""

from itertools import pairwise

import torch
from torch.nn import functional as F

from oracles import fsp as oracle

WEIGHTINGS = ("equal", "sum", "element_mean")


def draw(*shape, seed=0):
    """Like a map after ReLU, without ties among the values above zero."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).relu()


def permutation(size, seed):
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def same(actual, expected, tolerance=1e-12):
    """Equal in shape, and in value relative to the largest."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    error = (actual.detach().double() - expected).abs().max().item()
    assert error <= tolerance * max(expected.abs().max().item(), 1e-30), f"off by {error}"


def loops(front, back):
    return torch.tensor(oracle.fsp_matrix(front.tolist(), back.tolist()), dtype=torch.float64)


def network_maps(seed, images=2):
    """X0 .. X3 as in a CIFAR ResNet, small: the second and third flow need pooling."""
    shapes = [(3, 8, 4), (3, 8, 4), (4, 4, 2), (5, 2, 1)]
    return [draw(images, *shape, seed=seed + i) for i, shape in enumerate(shapes)]


def matrices(impl, maps):
    return [impl.matrix(front, back) for front, back in pairwise(maps)]


def loss_of_maps(impl, teacher, student, weighting):
    teacher, student = matrices(impl, teacher), matrices(impl, student)
    return impl.loss(student, teacher, impl.weights(weighting, [g.shape[1:] for g in teacher]))


def equals_the_loops(impl):
    for height, width in ((8, 6), (4, 3), (8, 3), (4, 6), (15, 7)):
        front, back = draw(2, 3, height, width), draw(2, 4, 4, 3, seed=1)
        same(impl.matrix(front, back), loops(front, back))
        same(impl.matrix(back, front), loops(back, front))
    teacher, student = network_maps(10), network_maps(20)
    for weighting in WEIGHTINGS:
        expected = oracle.stage_one([x.tolist() for x in teacher], [x.tolist() for x in student], weighting)
        same(loss_of_maps(impl, teacher, student, weighting), expected)


def oracle_01_constant_maps_give_their_square(impl):
    for c in (0.5, 3.0):
        front, back = torch.full((2, 3, 8, 8), c).double(), torch.full((2, 5, 4, 4), c).double()
        same(impl.matrix(front, back), torch.full((2, 3, 5), c * c))


def oracle_02_is_bilinear_in_positive_factors(impl):
    front, back = draw(2, 3, 8, 6), draw(2, 4, 4, 3, seed=1)
    same(impl.matrix(2.5 * front, 0.75 * back), 2.5 * 0.75 * loops(front, back))


def oracle_03_swapped_inputs_give_the_transpose(impl):
    front, back = draw(2, 3, 8, 6), draw(2, 4, 4, 3, seed=1)
    same(impl.matrix(front, back), loops(back, front).mT)


def oracle_04_common_spatial_permutation_changes_nothing(impl):
    front, back, order = draw(2, 3, 4, 6), draw(2, 4, 4, 6, seed=1), permutation(24, 2)
    moved = [maps.flatten(2)[:, :, order].unflatten(2, (4, 6)) for maps in (front, back)]
    same(impl.matrix(*moved), loops(front, back))


def oracle_05_identical_networks_have_no_loss_and_no_gradient(impl):
    maps = [x.requires_grad_() for x in network_maps(30)]
    teacher = [g.detach() for g in matrices(impl, maps)]
    loss = impl.loss(matrices(impl, maps), teacher, (1.0, 1.0, 1.0))
    loss.backward()
    assert loss.item() == 0
    assert all(torch.count_nonzero(x.grad) == 0 for x in maps)  # NaN would count
    # A loss without gradient there that is no norm by itself: twice as far off costs four times as much.
    off = [draw(*g.shape, seed=5 + i) for i, g in enumerate(teacher)]
    near = impl.loss([g + d for g, d in zip(teacher, off, strict=True)], teacher, (1.0, 1.0, 1.0))
    far = impl.loss([g + 2 * d for g, d in zip(teacher, off, strict=True)], teacher, (1.0, 1.0, 1.0))
    same(far, 4 * near)


def oracle_06_ones_against_zeros_count_the_entries(impl):
    shapes = [(16, 4, 4), (16, 4, 4), (32, 2, 2), (64, 1, 1)]
    teacher = [torch.ones(3, *shape, dtype=torch.float64) for shape in shapes]
    student = [torch.zeros_like(x) for x in teacher]
    same(loss_of_maps(impl, teacher, student, "sum"), 2816.0)
    same(loss_of_maps(impl, teacher, student, "element_mean"), 3.0)
    same(loss_of_maps(impl, teacher, student, "equal"), 1.0)


def oracle_07_pooled_map_is_max_pooled(impl):
    large, small = draw(2, 3, 8, 6), draw(2, 4, 4, 3, seed=1)
    pooled = F.max_pool2d(large, 2)
    same(impl.matrix(large, small), loops(pooled, small))
    same(impl.matrix(small, large), loops(small, pooled))
    tall = draw(2, 3, 12, 3, seed=2)
    same(impl.matrix(tall, small), loops(F.max_pool2d(tall, (3, 1)), small))


def oracle_08_permuted_teacher_has_permuted_matrices(impl, maps, permuted_maps, orders):
    """Maps of a network in float32, and of the same with its channels reordered: X'_i = X_i[:, orders[i]]."""
    originals = [loops(front, back) for front, back in pairwise(maps)]
    for i, (original, permuted) in enumerate(zip(originals, matrices(impl, permuted_maps), strict=True)):
        same(permuted, original[:, orders[i]][:, :, orders[i + 1]], tolerance=2e-6)


def oracle_09_joint_permutation_changes_nothing(impl):
    teacher, student = network_maps(40), network_maps(50)
    orders = [permutation(x.shape[1], i) for i, x in enumerate(teacher)]
    moved = [[x[:, order] for x, order in zip(maps, orders, strict=True)] for maps in (teacher, student)]
    for weighting in WEIGHTINGS:
        expected = oracle.stage_one([x.tolist() for x in teacher], [x.tolist() for x in student], weighting)
        same(loss_of_maps(impl, *moved, weighting), expected)


def oracle_10_rotated_positions_keep_the_matrix(impl):
    """The converse fails: one matrix, many maps. Both maps go through one orthogonal mixing of positions."""
    front, back = draw(2, 3, 4, 6), draw(2, 4, 4, 6, seed=1)
    rotation, _ = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    turned = [(maps.flatten(2) @ rotation).unflatten(2, (4, 6)) for maps in (front, back)]
    assert (turned[0] - front).norm() > 0.5 * front.norm()
    same(impl.matrix(*turned), loops(front, back))
