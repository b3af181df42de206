"""Adaptive clipping: each property of the published rule, and Eq. 14 as printed."""

import math

import pytest
import torch

from flowstill.transfer.rules import clip_global, clip_per_variable, eq14_literal, sigmoid
from oracles import clipping as oracle


@pytest.fixture
def gradients():
    generator = torch.Generator().manual_seed(0)
    task = [
        torch.randn(4, 3, generator=generator, dtype=torch.float64),
        torch.randn(5, generator=generator, dtype=torch.float64),
    ]
    transfer = [
        10 * torch.randn(4, 3, generator=generator, dtype=torch.float64),
        0.01 * torch.randn(5, generator=generator, dtype=torch.float64),
    ]
    return task, transfer


@pytest.mark.parametrize("epoch", [0, 1, 5, 50])
def test_clipped_part_has_at_most_the_share_of_the_task_norm(gradients, epoch):
    task, transfer = gradients
    met = clip_per_variable(task, transfer, sigmoid(epoch))
    for a, b, both in zip(task, transfer, met, strict=True):
        expected = min(float(b.norm()), float(a.norm()) / (1 + math.exp(-epoch)))
        assert float((both - a).norm()) == pytest.approx(expected, rel=1e-12)


def test_direction_is_kept(gradients):
    task, transfer = gradients
    for a, b, both in zip(task, transfer, clip_per_variable(task, transfer, 0.5), strict=True):
        cosine = torch.nn.functional.cosine_similarity((both - a).flatten(), b.flatten(), dim=0)
        assert float(cosine) == pytest.approx(1, abs=1e-12)


def test_first_epoch_bound_is_half(gradients):
    task, transfer = gradients
    met = clip_per_variable(task, transfer, sigmoid(0))
    assert float((met[0] - task[0]).norm()) == pytest.approx(float(task[0].norm()) / 2)


def test_no_task_gradient_leaves_nothing_and_zero_transfer_gives_no_nan(gradients):
    task, transfer = gradients
    zero = [torch.zeros_like(t) for t in task]
    assert all(bool((g == 0).all()) for g in clip_per_variable(zero, transfer, 0.5))
    for rule in (clip_per_variable(task, zero, 0.5), clip_global(task, zero, 0.5), eq14_literal(task, zero, 1)):
        for a, both in zip(task, rule, strict=True):
            torch.testing.assert_close(both, a, rtol=0, atol=0)


def test_variables_without_a_gradient_from_one_loss(gradients):
    task, transfer = gradients
    assert clip_per_variable([None, task[1]], [transfer[0], None], 0.5) == [None, task[1]]
    assert clip_global([task[0], task[1]], [transfer[0], None], 0.5)[1] is task[1]


def test_official_bound_sees_the_l2_term(gradients):
    task, transfer = gradients
    against = [3 * t for t in task]
    met = clip_per_variable(task, transfer, 0.5, against)
    assert float((met[0] - task[0]).norm()) == pytest.approx(1.5 * float(task[0].norm()))


def test_global_rule_equals_the_rule_on_one_long_vector(gradients):
    task, transfer = gradients
    long = clip_per_variable(
        [torch.cat([t.flatten() for t in task])], [torch.cat([t.flatten() for t in transfer])], 0.7
    )[0]
    met = torch.cat([g.flatten() for g in clip_global(task, transfer, 0.7)])
    torch.testing.assert_close(met, long)


def test_the_global_factor_counts_variables_without_a_transfer_gradient():
    """Eq. 13 is over all of Theta_S: |main| = |(3, 4)| = 5 and |trans| = |(10, 0)| = 10, though the fc has no transfer."""
    task, transfer = [torch.tensor([3.0]), torch.tensor([4.0])], [torch.tensor([10.0]), None]
    clipped = clip_global(task, transfer, 0.5)
    assert [float(g) for g in clipped] == pytest.approx([3 + 10 * 0.5 * 5 / 10, 4])
    small = [torch.tensor([2.5]), None]  # tau = 2, so it is dimmed by 1 / (1 + exp(-2 + p))
    assert float(eq14_literal(task, small, 1)[0]) == pytest.approx(3 + 2.5 / (1 + math.exp(-1)))
    equal = [torch.tensor([4.0]), None]  # smaller than the whole task's gradient, larger than its part here
    assert float(eq14_literal(task, equal, 0)[0]) == pytest.approx(3 + 4 / (1 + math.exp(-5 / 4)))


def test_eq14_as_printed_shrinks_only_a_small_transfer_and_more_each_epoch():
    task, small, large = [torch.tensor([2.0])], [torch.tensor([1.0])], [torch.tensor([4.0])]
    # tau = 2: 0.88 at p = 0, 0.047 at p = 5, 1.5e-8 at p = 20.
    for epoch, factor in ((0, 0.8808), (5, 0.04743), (20, 1.523e-8)):
        assert float(eq14_literal(task, small, epoch)[0]) - 2 == pytest.approx(factor, rel=1e-3, abs=2e-7)
    assert float(eq14_literal(task, large, 5)[0]) == 6


def by_mode(mode, task, transfer, epoch, against):
    if mode == "eq14_literal":
        return eq14_literal(task, transfer, epoch)
    if mode == "global":
        return clip_global(task, transfer, sigmoid(epoch))
    return clip_per_variable(task, transfer, sigmoid(epoch), against if mode == "official" else None)


def as_lists(gradients):
    return [None if g is None else g.flatten().tolist() for g in gradients]


@pytest.mark.parametrize("epoch", [0, 1, 4])
@pytest.mark.parametrize("scale", [0.05, 0.6, 1.0, 30.0])
@pytest.mark.parametrize("mode", ["official", "ce_norm", "global", "eq14_literal"])
def test_every_mode_equals_the_loops(mode, scale, epoch):
    """Variables of many sizes: some reached by both losses, some by one, some by none, some by zero gradients."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    task = [draw(4, 3), None, draw(7), 3 * draw(2, 2, 3), None, torch.zeros(5, dtype=torch.float64), 0.1 * draw(6)]
    transfer = [draw(4, 3), draw(5), None, draw(2, 2, 3), None, draw(5), torch.zeros(6, dtype=torch.float64)]
    transfer = [None if g is None else scale * g for g in transfer]
    weights = [draw(5) if g is None else draw(*g.shape) for g in task]
    decays = [True, True, False, True, True, True, False]
    against = [g if g is None or not does else g + 0.3 * w for g, w, does in zip(task, weights, decays, strict=True)]
    regularised = oracle.with_l2(as_lists(task), as_lists(weights), decays, 0.3)
    expected = oracle.met(mode, as_lists(task), as_lists(transfer), epoch, regularised)
    found = as_lists(by_mode(mode, task, transfer, epoch, against))
    assert [g is None for g in found] == [g is None for g in expected]
    for combined, wanted in zip(found, expected, strict=True):
        if combined is not None:
            assert combined == pytest.approx(wanted, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("mode", ["official", "ce_norm", "global", "eq14_literal"])
def test_a_transfer_without_gradient_leaves_the_task_unchanged(mode):
    task = [torch.ones(3), None]
    assert by_mode(mode, task, [None, None], 1, task) == task
