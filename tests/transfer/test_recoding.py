"""Sparse recoding against naive loops, alone around optimisers and as a player's."""

import copy
import itertools

import pytest
import torch
from torch import nn

import flowstill as fs
from flowstill.transfer.recoding import Recoder, Recoding, SparseRecoding, penalty, recode
from oracles import representing as oracle


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("epsilon", [0.01, 0.5, 1.0, 3.0])
def test_penalty_equals_the_loops_and_the_closed_forms(epsilon):
    g = torch.cat([draw(50), torch.tensor([epsilon, -epsilon, 0.0], dtype=torch.float64)])
    values = penalty(g, epsilon)
    assert values.tolist() == pytest.approx([oracle.phi0(x, epsilon) for x in g.tolist()], rel=1e-14)
    assert torch.equal(penalty(-g, epsilon), values)
    assert values[-3:].tolist() == pytest.approx([1 + epsilon, 1 + epsilon, 0.0], rel=1e-14)
    assert not values[g.abs() < epsilon].any()


def test_penalty_at_the_printed_threshold():
    assert penalty(torch.tensor([1.0, 0.4]), 0.5).tolist() == [4.0, 0.0]


def test_autograd_of_the_penalty_is_the_formula():
    g, epsilon = draw(200).requires_grad_(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    by_g, by_epsilon = torch.autograd.grad(penalty(g, epsilon).sum(), [g, epsilon])
    active = g.detach().abs() >= 0.5
    torch.testing.assert_close(by_g, torch.where(active, (g.sign() + 2 * g) / 0.5, 0.0).detach())
    expected = -sum((abs(x) + x * x) / 0.25 for x in g.tolist() if abs(x) >= 0.5)
    assert float(by_epsilon) == pytest.approx(expected, rel=1e-12)
    assert float(by_epsilon) < 0


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("epsilon", "strength"), [(0.3, 1.0), (1.0, 0.5), (0.01, 0.0), (5.0, 2.0)])
def test_recode_equals_the_loops(soft, epsilon, strength):
    g = torch.cat([draw(60), torch.zeros(2, dtype=torch.float64)])
    out = recode(g, epsilon, strength, soft)
    assert out.tolist() == pytest.approx(oracle.recode(g.tolist(), epsilon, strength, soft), rel=1e-12)
    active = g.abs() >= epsilon
    if not soft:
        assert int((out == 0).sum()) == int((~active).sum())
        assert set((out.sign() * g.sign()).tolist()) <= {0.0, 1.0}
    assert torch.equal(out[~active], g[~active] if soft else torch.zeros(int((~active).sum()), dtype=torch.float64))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def descend(net, optimizer, steps, first=0, **backward):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        x, y = draw(16, 6, seed=step), draw(16, 3, seed=100 + step)
        like = next(net.parameters())
        nn.functional.mse_loss(net(x.to(like)), y.to(like)).backward(**backward)
        optimizer.step()


@pytest.mark.parametrize("mode", ["recode", "recode_soft"])
def test_a_threshold_and_strength_of_zero_are_plain_sgd_to_the_bit(mode):
    recoded, plain = network(), network()
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}
    descend(
        recoded,
        SparseRecoding(torch.optim.SGD(recoded.parameters(), **settings), mode=mode, fixed=0.0, strength=0.0),
        5,
    )
    descend(plain, torch.optim.SGD(plain.parameters(), **settings), 5)
    assert all(torch.equal(a, b) for a, b in zip(recoded.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("initial", ["mean_abs_g", "mean_abs_w"])
@pytest.mark.parametrize("quantile", [0.9, 0.5, None])
def test_thresholds_and_gradients_equal_the_loops_over_many_steps(initial, quantile):
    parameter = nn.Parameter(draw(7, 5, seed=9, scale=0.2))
    recoder = Recoder(Recoding(initial=initial, quantile=quantile, lr=0.3, strength=0.7), [parameter])
    epsilon = None
    for step in range(12):
        gradient = draw(7, 5, seed=step, scale=0.1 * (1 + step % 3))
        flat = gradient.flatten().tolist()
        if epsilon is None:
            epsilon = oracle.mean_magnitude(flat if initial == "mean_abs_g" else parameter.flatten().tolist())
        used, epsilon = oracle.threshold_after(flat, epsilon, 0.3, quantile)
        (out,) = recoder([gradient])
        assert out.flatten().tolist() == pytest.approx(oracle.recode(flat, used, 0.7, soft=False), rel=1e-9)
        assert recoder.thresholds[0] == pytest.approx(epsilon, rel=1e-9)


def test_threshold_grows_without_a_bound_and_stays_below_it_with_one():
    gradient = draw(40, scale=0.01)
    free, bounded = (
        Recoder(Recoding(lr=0.2, quantile=q), [nn.Parameter(torch.zeros(40, dtype=torch.float64))]) for q in (None, 0.9)
    )
    grown, kept = [], []
    for _ in range(60):
        (out,) = free([gradient])
        grown.append(free.thresholds[0])
        (held,) = bounded([gradient])
        kept.append(bounded.thresholds[0])
        assert int((held != 0).sum()) >= 4  # a tenth passes
    assert all(a <= b for a, b in itertools.pairwise(grown))
    assert grown[0] > oracle.mean_magnitude(gradient.tolist())
    assert not out.any()  # the trivial optimum
    assert max(kept) <= oracle.bound(gradient.tolist(), 0.9) * (1 + 1e-9)
    assert kept[-1] == pytest.approx(oracle.bound(gradient.tolist(), 0.9), rel=1e-9)


def test_most_entries_lie_below_the_bound():
    values = draw(57, seed=3).tolist()
    parameter = nn.Parameter(torch.full((57,), 100.0, dtype=torch.float64))
    recoder = Recoder(Recoding(initial="mean_abs_w", quantile=0.8, lr=0.0), [parameter])
    recoder([torch.tensor(values, dtype=torch.float64)])
    assert (
        sum(abs(v) <= recoder.thresholds[0] * (1 + 1e-12) for v in values) == 46
    )  # the first count of at least 0.8 * 57 = 45.6


def test_zero_and_missing_gradients_do_not_affect_the_threshold():
    parameters = [nn.Parameter(torch.zeros(10)) for _ in range(2)]
    recoder = Recoder(Recoding(), parameters)
    dead, missing = recoder([torch.zeros(10), None])
    assert not dead.any()
    assert missing is None
    assert recoder.thresholds == [0.0, 0.0]
    alive, _ = recoder([torch.arange(10.0), None])
    assert recoder.thresholds[0] >= 4.5
    assert alive.tolist() == [0.0] * 5 + [g * (2 + g) for g in (5.0, 6.0, 7.0, 8.0, 9.0)]
    recoder([torch.zeros(10), None])
    again, _ = recoder([torch.arange(10.0), None])
    assert torch.equal(again, alive)
    assert all(torch.isfinite(torch.tensor(recoder.thresholds)))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    ],
)
def test_the_wrapper_resumes_exactly_around_any_optimiser(make, tmp_path):
    whole, half = network(), network()
    descend(whole, SparseRecoding(make(whole.parameters()), lr=0.5), 8)
    first = SparseRecoding(make(half.parameters()), lr=0.5)
    descend(half, first, 4)
    torch.save({"net": half.state_dict(), "optimizer": first.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    later = network(seed=5)
    later.load_state_dict(saved["net"])
    second = SparseRecoding(make(later.parameters()), lr=0.5)
    second.load_state_dict(saved["optimizer"])
    descend(later, second, 4, first=4)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), later.parameters(), strict=True))
    fresh = SparseRecoding(make(half.parameters()), lr=0.5)
    fresh.optimizer.load_state_dict(saved["optimizer"]["optimizer"])
    descend(half, fresh, 4, first=4)  # without the thresholds it goes elsewhere
    assert not all(torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True))


def test_gradients_are_recoded_before_decay_and_momentum():
    recoded, by_hand = network(), network()
    optimizer = fs.SparseRecoding(
        torch.optim.SGD(recoded.parameters(), lr=0.1, momentum=0.9, weight_decay=0.05), fixed=0.02, strength=2.0
    )
    momenta = [torch.zeros_like(p) for p in by_hand.parameters()]
    for step in range(3):
        descend(recoded, optimizer, 1, first=step)
        by_hand.zero_grad()
        x, y = draw(16, 6, seed=step).float(), draw(16, 3, seed=100 + step).float()
        nn.functional.mse_loss(by_hand(x), y).backward()
        with torch.no_grad():
            for p, m in zip(by_hand.parameters(), momenta, strict=True):
                coded = torch.tensor(oracle.recode(p.grad.flatten().tolist(), 0.02, 2.0, soft=False)).view_as(p)
                m.mul_(0.9).add_(coded + 0.05 * p)
                p.sub_(0.1 * m)
    for a, b in zip(recoded.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_it_works_with_schedulers_scalers_closures_and_copies():
    net = network()
    optimizer = SparseRecoding(torch.optim.SGD(net.parameters(), lr=0.4, fused=True))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    descend(net, optimizer, 1)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == optimizer.optimizer.param_groups[0]["lr"] == 0.2

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(4, 6)).square().mean()
        loss.backward()
        return loss

    before = float(net(torch.ones(4, 6)).square().mean().detach())
    assert float(optimizer.step(closure).detach()) == before
    other_net, other = copy.deepcopy((net, optimizer))
    assert other.thresholds == optimizer.thresholds
    descend(net, optimizer, 2)
    descend(other_net, other, 2)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other_net.parameters(), strict=True))
    extra = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [extra], "lr": 0.1})
    extra.grad = torch.tensor([0.1, 0.2, 0.9])
    optimizer.step()
    assert extra.tolist()[:2] == [1.0, 1.0]
    assert len(optimizer.thresholds) == 5


def test_a_grad_scaler_unscales_before_recoding():
    recoded, plain = network(), network()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = SparseRecoding(torch.optim.SGD(recoded.parameters(), lr=0.1, fused=True), fixed=0.05)
    x, y = draw(16, 6).float(), draw(16, 3, seed=1).float()
    scaler.scale(nn.functional.mse_loss(recoded(x), y)).backward()
    scaler.step(optimizer)
    unscaled = SparseRecoding(torch.optim.SGD(plain.parameters(), lr=0.1, fused=True), fixed=0.05)
    nn.functional.mse_loss(plain(x), y).backward()
    unscaled.step()
    for a, b in zip(recoded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_double_backward_is_the_gradient_of_the_penalised_loss():
    """Against central differences of loss + strength * epsilon * Phi(gradient of the loss)."""
    torch.manual_seed(0)
    net = network().double()
    x, y = draw(16, 6), draw(16, 3, seed=1)
    parameters = list(net.parameters())
    epsilon, strength = 0.03, 0.4

    def penalised():
        loss = nn.functional.mse_loss(net(x), y)
        gradients = torch.autograd.grad(loss, parameters)
        return float(loss.detach()) + strength * epsilon * sum(
            oracle.phi(g.flatten().tolist(), epsilon) for g in gradients
        )

    optimizer = SparseRecoding(
        torch.optim.SGD(parameters, lr=0.0), mode="double_backward", fixed=epsilon, strength=strength
    )
    nn.functional.mse_loss(net(x), y).backward(create_graph=True)
    optimizer.step()
    for parameter in parameters:
        for index in range(0, parameter.numel(), 5):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[index] += sign * 1e-6
                values.append(penalised())
                with torch.no_grad():
                    parameter.view(-1)[index] -= sign * 1e-6
            assert float(parameter.grad.view(-1)[index]) == pytest.approx(
                (values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-8
            )


def test_double_backward_says_what_it_needs():
    net = network()
    optimizer = SparseRecoding(torch.optim.SGD(net.parameters(), lr=0.1), mode="double_backward")
    net(torch.ones(2, 6)).sum().backward()
    with pytest.raises(ValueError, match="create_graph=True"):
        optimizer.step()


def test_unknown_options_and_values_are_refused():
    net = network()
    with pytest.raises(fs.RecipeError, match="strength"):
        SparseRecoding(torch.optim.SGD(net.parameters(), lr=0.1), strenght=2.0)
    with pytest.raises(fs.RecipeError, match="quantile"):
        Recoding(quantile=1.5)
    with pytest.raises(fs.RecipeError, match="'recode_soft'"):
        Recoding(mode="soft")
    with pytest.raises(ValueError, match="Expected a state of 4 parameters"):
        Recoder(Recoding(), list(net.parameters())).load_state_dict({"rho": [torch.zeros(())] * 2})
