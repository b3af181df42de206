"""Alignment, signs and distilled feature vectors against the paper: oracles (c) 5-7 and 10."""

import math

import pytest
import torch
from torch.nn import functional as F

from flowstill.knowledge.svd import align, canonical_signs, feature_weights, match, rbf, truncated_svd
from oracles import svd as oracle
from oracles.svd_maps import columns, random_maps


def dfvs(front, back, rank=2):
    return rbf(
        *(canonical_signs(v) * feature_weights(s)[:, None] for s, v in (truncated_svd(m, rank) for m in (front, back)))
    )


def test_5_dfv_invariant_to_scale_orthogonal_mixing_of_positions_and_upsampling():
    front, back = random_maps(2, 5, 4, 6), random_maps(2, 7, 2, 3, seed=1)
    expected = dfvs(front, back)
    rotation = torch.linalg.qr(random_maps(24, 24, seed=2) - 0.3)[0]
    shuffle = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    same = {
        "scale": 3.7 * front,
        "rotation": (front.flatten(2) @ rotation).view_as(front),
        "permutation": front.flatten(2)[..., shuffle].view_as(front),
        "upsampling": F.interpolate(front, scale_factor=3, mode="nearest"),
        "transposed": front.mT,
    }
    for name, changed in same.items():
        torch.testing.assert_close(dfvs(changed, back), expected, msg=lambda text, name=name: f"{name}: {text}")
    assert not torch.allclose(dfvs(front.flip(1), back), expected)


@pytest.mark.parametrize("shape", [(8, 5, 5), (30, 4, 5), (64, 8, 8)], ids=str)
def test_6_first_vector_behind_a_relu_is_not_negative(shape):
    for dtype, slack in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        maps = random_maps(20, *shape, dtype=dtype)
        assert canonical_signs(truncated_svd(maps, 1)[1]).min() >= -slack


def test_7_range_of_dfv():
    front, back = random_maps(50, 4, 3, 3) - 0.4, random_maps(50, 5, 3, 3, seed=1) - 0.4
    values = dfvs(front, back, 4)
    assert values.min() >= math.exp(-1 / 2)
    assert values.max() <= 1
    assert dfvs(front.relu(), back.relu(), 1).min() >= math.exp(-1 / 8)
    corner = torch.tensor([[[1.0], [0.0]]])
    assert rbf(corner, -corner).min().item() == pytest.approx(math.exp(-1 / 2))


def test_canonical_signs():
    # a tie; a negative sum; positive by more than rounding; a tie up to rounding
    given = [[0.6, -0.8, 0.2], [-0.8, 0.6, -0.1], [0.1, -0.5, 0.41], [-0.8, 0.3, 0.5000001]]
    expected = [[-0.6, 0.8, -0.2], [0.8, -0.6, 0.1], [0.1, -0.5, 0.41], [0.8, -0.3, -0.5000001]]
    torch.testing.assert_close(canonical_signs(torch.tensor([given]).mT), torch.tensor([expected]).mT)
    for b in range(3):
        vectors = random_maps(3, 5, 1, 4, seed=b)[:, :, 0] - 0.4
        signed = canonical_signs(vectors)
        assert [columns(v) for v in signed] == [[oracle.canonical(c) for c in columns(v)] for v in vectors]


@pytest.mark.parametrize("matching", ["greedy", "hungarian"])
def test_10_permuted_and_flipped_vectors_are_aligned(matching):
    teacher = torch.linalg.qr(torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0)))[0]
    student = teacher[..., [3, 0, 4, 2, 1]] * torch.tensor([1, -1, -1, 1, -1])
    assert torch.equal(align(teacher, student, matching), teacher)
    assert torch.equal(align(teacher[..., :2], student, matching), teacher[..., :2])


@pytest.mark.parametrize("matching", ["greedy", "hungarian"])
def test_alignment_is_the_papers(matching):
    generator = torch.Generator().manual_seed(0)
    teacher, student = (
        F.normalize(torch.randn(30, 6, m, generator=generator, dtype=torch.float64), dim=1) for m in (3, 4)
    )
    chosen, signs = match(teacher, student, matching)
    for b in range(30):
        expected = oracle.alignment(columns(teacher[b]), columns(student[b]), matching)
        assert torch.equal(chosen[b], student[b][:, expected])
    assert torch.equal(signs[:, 0], (teacher * chosen).sum(1).sign())


def test_greedy_takes_a_vector_twice_where_hungarian_does_not():
    teacher = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    student = torch.tensor([[[0.6, 0.8], [-0.8, 0.6]]])[..., [0, 1]] @ torch.diag(torch.tensor([1.0, 0.1]))
    assert torch.equal(match(teacher, student)[0], student[..., [0, 0]])
    assert torch.equal(match(teacher, student, "hungarian")[0], student[..., [1, 0]])


def test_orthogonal_vectors_have_sign_one():
    assert match(torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.0], [1.0]]]))[1].item() == 1


def test_alignment_under_autocast_tells_cosines_apart():
    angles = torch.tensor([0.7, 0.701, 0.699])
    student = torch.stack([angles.cos(), angles.sin()])[None]
    teacher = torch.tensor([[[1.0], [0.0]]])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(align(teacher, student), student[..., 2:])
