"""Distilled feature vectors and their distance, which avoids building large ones (Eq. 9-11)."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from flowstill.knowledge.radial import dfv_loss, rbf
from oracles.svd import dfv


def vectors(channels, seed, images=2, rank=2, noise=0.0):
    """Weighted unit vectors as SVD has them; with noise, close to those drawn without it from the same seed."""
    drawn = torch.rand(images, channels, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    more = torch.randn(images, channels, rank, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64)
    return nn.functional.normalize(drawn + noise * more, dim=1) / rank**0.5


def networks(front, back, noise=0.5):
    """A teacher's vectors of both maps, and similar ones of a student."""
    return tuple((vectors(front, 0, noise=n), vectors(back, 1, noise=n)) for n in (noise, 0.0))


def by_hand(student, teacher, beta):
    """Eq. 11, from the oracle's vectors of Eq. 9-10, image by image."""

    def features(ends, image):
        return np.array(dfv(*(end[image].mT.tolist() for end in ends), beta))

    return sum(np.square(features(teacher, b) - features(student, b)).sum() / 2 for b in range(len(student[0])))


SIZES = [(3, 4), (120, 140)]  # the second is larger than its factors, but for the two smallest betas


@pytest.mark.parametrize("beta", [1e-3, 0.1, 1.0, 8.0, 1e5])
@pytest.mark.parametrize(("front", "back"), SIZES)
def test_the_loss_is_the_papers(front, back, beta):
    student, teacher = networks(front, back)
    assert dfv_loss(student, teacher, beta).item() == pytest.approx(by_hand(student, teacher, beta), rel=1e-9, abs=0)


@pytest.mark.parametrize("at", [-1.0, 1.0])
def test_entries_of_one_and_minus_one_are_within_the_series(at):
    """All of a vector's energy in one channel: the largest possible products."""
    front, back = torch.zeros(1, 60, 1, dtype=torch.float64), torch.zeros(1, 70, 1, dtype=torch.float64)
    teacher = (front.clone(), back.clone())
    front[0, 0], back[0, 0], teacher[0][0, 0], teacher[1][0, 1] = 1.0, at, 1.0, 1.0
    assert dfv_loss((front, back), teacher).item() == pytest.approx(by_hand((front, back), teacher, 8.0), rel=1e-12)


@pytest.mark.parametrize(("front", "back"), SIZES)
def test_gradient(front, back):
    student, teacher = networks(front, back)
    student = tuple(end[:1, :, :1].clone().requires_grad_() for end in student)
    teacher = tuple(end[:1, :, :1] for end in teacher)
    torch.autograd.gradcheck(lambda *ends: dfv_loss(ends, teacher), student)
    torch.autograd.gradgradcheck(lambda *ends: dfv_loss(ends, teacher), student)


def test_float32_loses_less_than_through_the_vectors():
    """Students near their teacher: the distance is small compared with the vectors' entries, all near 1."""
    student, teacher = networks(200, 300, noise=0.01)
    errors = []
    for loss in (dfv_loss, lambda ends_s, ends_t: (rbf(*ends_s) - rbf(*ends_t)).square().sum() / 2):
        gradients = []
        for dtype in (torch.float64, torch.float32):
            ends_s = [end.to(dtype).requires_grad_() for end in student]
            value = loss(tuple(ends_s), tuple(end.to(dtype) for end in teacher))
            gradients.append(torch.cat([g.double().flatten() for g in torch.autograd.grad(value, ends_s)]))
        errors.append(float((gradients[1] - gradients[0]).norm() / gradients[0].norm()))
    assert errors[0] < 1e-4
    assert errors[0] < errors[1] / 5


def test_large_vectors_are_never_made():
    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.seen = max(self.seen, result.numel())
            return result

    student, teacher = networks(128, 256)
    student = tuple(end.requires_grad_() for end in student)
    with Largest() as largest:
        dfv_loss(student, teacher).backward()
    assert 0 < largest.seen < rbf(*teacher).numel() / 2


def test_autocast_changes_nothing():
    student, teacher = ((a.float(), b.float()) for a, b in networks(128, 256))
    plain = dfv_loss(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dfv_loss(student, teacher), plain)


def test_equal_vectors_have_zero_distance_and_gradient():
    (front, back), _ = networks(128, 256)
    ends_s = (front.clone().requires_grad_(), back.clone().requires_grad_())
    loss = dfv_loss(ends_s, (front, back))
    assert loss == 0
    assert not any(g.any() for g in torch.autograd.grad(loss, ends_s))
