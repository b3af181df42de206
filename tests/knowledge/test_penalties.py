"""Penalties on the weights, L2 and L1, in addition to the labels' loss."""

import pytest
import torch
from torch import nn

import flowstill as fs
from flowstill.engine.player import ActivePlayer
from flowstill.recipes.recipe import Optimizer, Player
from flowstill.transfer.schedules import Constant


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).double()


@pytest.mark.parametrize("decay", ["all", "weights"])
def test_the_l1_term_is_the_gradient_of_the_sum_of_sizes(decay):
    """Two steps against autograd of the sum of |w| over the decayed parameters."""
    stepped, plain = network(), network()
    with torch.no_grad():
        for one in (stepped, plain):
            one[1].bias.copy_(torch.tensor([0.5, -0.25, 0.0]))  # sign(0) is 0
    spec = Optimizer("sgd", momentum=0.9, weight_decay=0.02, l1=0.3, decay=decay)
    player = ActivePlayer(Player(optimizer=spec, lr=Constant(0.1)), list(stepped.parameters()))
    momentum = [torch.zeros_like(p) for p in plain.parameters()]
    for step in range(2):
        given = [torch.full_like(p, 0.01 * (step + 1)) for p in plain.parameters()]
        player.step(list(given), 0.1)
        penalised = [p for p in plain.parameters() if decay == "all" or p.ndim > 1]
        penalty = sum(0.3 * p.abs().sum() + 0.01 * p.square().sum() for p in penalised)
        gradients = torch.autograd.grad(penalty, list(plain.parameters()), allow_unused=True)
        with torch.no_grad():
            for p, g, more, m in zip(plain.parameters(), given, gradients, momentum, strict=True):
                m.mul_(0.9).add_(g + (0 if more is None else more))
                p.sub_(0.1 * m)
    for one, other in zip(stepped.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_rules_that_look_at_decay_see_it():
    net = network()
    zero = [torch.zeros_like(p) for p in net.parameters()]
    player = ActivePlayer(Player(optimizer=Optimizer(weight_decay=0.02, l1=0.3)), list(net.parameters()))
    for p, g in zip(net.parameters(), player.decayed(zero), strict=True):
        torch.testing.assert_close(g, 0.02 * p.detach() + 0.3 * p.detach().sign())
    assert player.decayed([None, *zero[1:]])[0] is None


def test_given_gradients_are_not_modified():
    net = network()
    given = [torch.ones_like(p) for p in net.parameters()]
    ActivePlayer(Player(optimizer=Optimizer(l1=0.3)), list(net.parameters())).step(given, 0.1)
    assert all(bool((g == 1).all()) for g in given)


def test_a_negative_penalty_is_refused():
    with pytest.raises(fs.RecipeError, match="l1"):
        Optimizer(l1=-1)
