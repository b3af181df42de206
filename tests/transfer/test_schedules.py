"""Schedules against the papers' tables, PyTorch's schedulers and what their shapes must be."""

import math
import re

import pytest
import torch
from torch.optim import lr_scheduler

from flowstill.errors import RecipeError
from flowstill.transfer.schedules import Constant, Cosine, Linear, Milestones, multiplied

STEPS = 40


def pytorch_values(make, first, steps=STEPS):
    """The learning rate at each step by one of PyTorch's own schedulers."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=first)
    scheduler = make(optimizer)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def values(schedule, steps=STEPS):
    return [schedule.at(step, steps) for step in range(steps)]


def test_a_constant_does_not_change():
    assert values(Constant(0.3)) == [0.3] * STEPS
    assert Constant(0.3).scaled(0.01) == Constant(0.3)


def test_milestones_are_pytorchs_multi_step():
    expected = pytorch_values(lambda o: lr_scheduler.MultiStepLR(o, [11, 16], gamma=0.1), 0.1)
    assert values(Milestones({0: 0.1, 11: 0.01, 16: 0.001})) == pytest.approx(expected)


@pytest.mark.parametrize("milestones", [(32_000, 48_000, 64_000), (11_000, 16_000, 21_000), (16_000, 24_000, 32_000)])
def test_milestones_are_the_papers(milestones):
    """Yim et al., section 4: one rate until each iteration."""
    first, second, end = milestones
    for peak in (0.1, 1e-3):
        schedule = Milestones({0: peak, first: peak / 10, second: peak / 100})
        assert [schedule.at(step, end) for step in (0, first - 1)] == [peak, peak]
        assert [schedule.at(step, end) for step in (first, second - 1)] == [peak / 10, peak / 10]
        assert [schedule.at(step, end) for step in (second, end - 1)] == [peak / 100, peak / 100]


def test_the_order_of_milestones_does_not_matter():
    assert values(Milestones({16: 1.0, 0: 3.0, 11: 2.0})) == values(Milestones({0: 3.0, 11: 2.0, 16: 1.0}))


@pytest.mark.parametrize("factor", [0.02, 0.5, 1, 3])
def test_scaled_milestones_keep_their_share_of_the_stage(factor):
    schedule, steps = Milestones({0: 0.1, 32_000: 0.01, 48_000: 0.001}), round(64_000 * factor)
    scaled = schedule.scaled(factor)
    for share in (0, 0.25, 0.499, 0.501, 0.749, 0.751, 0.999):
        assert scaled.at(int(share * steps), steps) == schedule.at(int(share * 64_000), 64_000)


@pytest.mark.parametrize("factor", [1e-6, 1e-4, 1e-3])
def test_milestones_scaled_to_almost_nothing_keep_all_values_in_order(factor):
    scaled = Milestones({0: 0.1, 1000: 0.01, 1001: 0.001}).scaled(factor)
    assert [value for _, value in sorted(scaled.milestones.items())] == [0.1, 0.01, 0.001]
    assert scaled.at(0, 1) == 0.1


@pytest.mark.parametrize("milestones", [{}, {5: 0.1}, {-1: 0.1, 0: 0.2}])
def test_milestones_start_at_zero(milestones):
    with pytest.raises(RecipeError, match=re.escape("milestones start at iteration 0")):
        Milestones(milestones)


def test_linear_falls_evenly_from_four_to_one():
    """The weight of FitNet's soft term: 4 at the first step, 1 at the last, 2.5 half-way."""
    schedule = Linear((4, 1))
    assert [schedule.at(step, 21_001) for step in (0, 10_500, 21_000)] == [4, 2.5, 1]
    pytorchs = pytorch_values(lambda o: lr_scheduler.LinearLR(o, 1.0, 0.25, total_iters=STEPS - 1), 4.0)
    assert values(schedule) == pytest.approx(pytorchs)
    assert schedule.at(0, 1) == 4
    assert schedule.scaled(0.1) == schedule


@pytest.mark.parametrize(("stairs", "steps"), [(1, 7), (4, 40), (10, 40), (10, 37), (10, 3)])
def test_stairs_keep_the_lines_value_at_the_start_of_each_part(stairs, steps):
    schedule = Linear((4, 1), stairs=stairs)
    for step in range(steps):
        part = max(number for number in range(stairs) if number * steps <= step * stairs)
        assert schedule.at(step, steps) == pytest.approx(4 - 3 * part / stairs)
    assert schedule.scaled(0.1) == schedule


def test_stairs_are_pytorchs_steps_of_a_polynomial_of_power_one():
    """Stairs of ten updates: the polynomial decay of PyTorch that moves once in ten updates."""
    by_part = pytorch_values(lambda o: lr_scheduler.PolynomialLR(o, total_iters=4), 0.1, steps=4)
    assert values(Linear((0.1, 0), stairs=4)) == pytest.approx([rate for rate in by_part for _ in range(10)])


@pytest.mark.parametrize("stairs", [0, -1, 2.5])
def test_invalid_numbers_of_stairs_are_refused(stairs):
    with pytest.raises(RecipeError, match=r"Linear\.stairs"):
        Linear((4, 1), stairs=stairs)


def test_cosine_is_pytorchs_annealing():
    expected = pytorch_values(lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS), 0.4)
    assert values(Cosine(0.4)) == pytest.approx(expected)
    assert sum(values(Cosine(0.4))) == pytest.approx(0.4 * (STEPS + 1) / 2)  # the cosines but the first cancel


def test_warm_up_rises_evenly_to_the_peak():
    rates = values(Cosine(0.4, warmup=0.25))
    steps = [b - a for a, b in zip([0.0, *rates], rates[:11], strict=False)]
    assert steps == pytest.approx([0.4 / 11] * 11)
    assert rates[10] == max(rates) == 0.4
    assert rates[10:] == pytest.approx([0.2 * (1 + math.cos(math.pi * k / 30)) for k in range(30)])
    assert Cosine(0.4, 0.25).scaled(0.1) == Cosine(0.4, 0.25)


@pytest.mark.parametrize("warmup", [0.0, 0.13, 0.5, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_cosine_stays_between_zero_and_its_peak(warmup, steps):
    rates = values(Cosine(0.4, warmup), steps)
    top = rates.index(max(rates))
    assert all(0 < rate <= 0.4 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize("warmup", [-0.1, 1.0])
def test_warm_up_is_a_share_below_one(warmup):
    with pytest.raises(RecipeError, match=r"Cosine\.warmup"):
        Cosine(0.1, warmup)


@pytest.mark.parametrize(
    "schedule",
    [Constant(0.7), Milestones({0: 0.7, 40: 0.07}), Linear((0.7, 0.3)), Linear((0.7, 0.3), 4), Cosine(0.7, 0.2)],
)
def test_multiplied_schedules_keep_their_shape(schedule):
    small = multiplied(schedule, 0.01)
    assert type(small) is type(schedule)
    assert values(small) == pytest.approx([0.01 * value for value in values(schedule)], rel=1e-9)
    assert multiplied(Constant(0.7), 0.01) == Constant(0.007)  # where 0.7 * 0.01 is 0.006999999999999999
