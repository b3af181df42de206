"""The share of the gradients that sparse recoding lets pass, against naive loops."""

import pytest
import torch
from torch import nn

from flowstill.transfer.recoding import Recoder, Recoding
from oracles import representing as oracle


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("mode", ["recode", "recode_soft"])
def test_the_active_share_equals_the_loops(mode):
    """Mean over the calls since the last look, of entries and not of tensors; a tensor without gradient has none."""
    parameters = [nn.Parameter(draw(*shape)) for shape in ((7, 5), (3,), (4,), (2, 2))]
    recoder = Recoder(Recoding(mode, lr=0.3), parameters)
    assert recoder.active_share() is None
    for first in (0, 5):
        shares = []
        for step in range(first, first + 5):
            gradients = [draw(7, 5, seed=step), draw(3, seed=50 + step, scale=10), torch.zeros(4), None]
            before = recoder.thresholds
            recoder(gradients)
            flat = [g.flatten().tolist() for g in gradients if g is not None]
            started = [epsilon or oracle.mean_magnitude(g) for g, epsilon in zip(flat, before, strict=False)]
            used = [min(epsilon, oracle.bound(g, 0.9)) for g, epsilon in zip(flat, started, strict=True)]
            shares.append(oracle.active_share(flat, used))
        assert recoder.active_share() == pytest.approx(sum(shares) / 5, rel=1e-6)
        assert recoder.active_share() is None
    assert 0 < shares[-1] < 1


def test_a_learnt_threshold_finally_filters_nine_tenths():
    """Gradients of one distribution: 43 % pass at first, with the threshold at their mean; then about a tenth, for good."""
    recoder, shares = Recoder(Recoding(), [nn.Parameter(torch.zeros(2000))]), []
    for step in range(400):
        recoder([draw(2000, seed=step).float()])
        shares.append(recoder.active_share())
    assert shares[0] == pytest.approx(0.425, abs=0.03)  # of a normal distribution, what lies beyond its mean magnitude
    assert all(0.09 < share < 0.15 for share in shares[250:])


def test_the_active_share_is_saved_and_old_states_load():
    recoders = [Recoder(Recoding(), [nn.Parameter(torch.zeros(40))]) for _ in range(3)]
    recoders[0]([draw(40).float()])
    state = recoders[0].state_dict()
    recoders[1].load_state_dict(state)
    recoders[2].load_state_dict({"rho": state["rho"]})  # as it was before shares were counted
    for recoder in recoders:
        recoder([draw(40, seed=1).float()])
    shares = [recoder.active_share() for recoder in recoders]
    assert shares[0] == shares[1] != shares[2]
