"""Nothing runs after a stop, and nothing stays on the network."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowstill.errors import TapError
from flowstill.features.taps import Tap, Tapped
from support.tap_networks import Count, Steps, assert_same, calls, counted, hook_count, images


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("taps", "until", "ran"),
    [
        (["b"], "logits", 5),
        (["b"], "taps", 2),
        (["c", "a"], "taps", 3),
        (["c:input", "a"], "taps", 2),
        (["a"], "c", 3),
        (["a", "b"], Tap("b"), 2),
        ([], "d:input", 3),
        (["", "a"], "taps", 5),
        ([], "taps", 0),
    ],
)
def test_nothing_runs_after_the_stop(taps, until, ran):
    network, x = counted(), images()
    reading = Tapped(network, taps, until=until)(x)
    assert calls(network) == [1] * ran + [0] * (5 - ran)
    assert (reading.logits is None) == (until != "logits")
    assert [str(tap) for tap in reading.maps] == taps
    for tap in filter(str, reading.maps):
        torch.testing.assert_close(reading[tap], 2.0 ** ("abcde".index(tap.path) + (tap.at == "output")) * x)


@pytest.mark.parametrize("until", ["taps", "logits"])
def test_contexts_entered_by_the_network_are_exited(until):
    class Contexts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                return self.conv(x).mean((2, 3))

    reading = Tapped(Contexts(), ["conv"], until=until)(images())
    assert reading["conv"].dtype == torch.bfloat16
    assert not reading["conv"].requires_grad
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_always_called_hooks_still_run_at_a_stop():
    network, seen = counted(), []
    network.register_forward_hook(lambda *_: seen.append("whole"), always_call=True)
    network.b.register_forward_hook(lambda *_: seen.append("b"))
    Tapped(network, ["b"], until="taps")(images())
    assert seen == ["b", "whole"]


def test_an_output_is_read_after_hooks_that_change_it():
    network, x = counted(), images()
    network.b.register_forward_hook(lambda module, args, output: -output)
    torch.testing.assert_close(Tapped(network, ["b"])(x)["b"], -4 * x)


@pytest.mark.parametrize("until", ["logits", "taps"])
def test_no_hook_stays_and_modes_and_names_are_kept(until):
    network = Steps()
    network.steps[1].eval()
    modes = [module.training for module in network.modules()]
    tapped = Tapped(network, ["steps.1", "steps.3:input"], until)
    tapped(images())
    assert hook_count(network) == 0
    assert [module.training for module in network.modules()] == modes
    assert list(tapped.state_dict()) == [f"network.{name}" for name in network.state_dict()]


def test_no_hook_stays_after_a_forward_that_raised():
    network = Steps()
    tapped = Tapped(network, ["steps.0", "head"])
    with pytest.raises(RuntimeError, match="channels"):
        tapped(torch.randn(2, 5, 8, 8))
    assert hook_count(network) == 0
    assert_same(tapped(x := images()), Tapped(network, ["steps.0", "head"])(x))


def test_hooks_stay_for_as_long_as_with_lasts():
    network, x = Steps(), images()
    tapped = Tapped(network, ["steps.1", "steps.3:input"])
    expected = tapped(x)
    with tapped as same:
        assert same is tapped
        for _ in range(2):
            assert_same(tapped(x), expected)
            assert hook_count(network) == 2
        with tapped:
            assert hook_count(network) == 2
        torch.testing.assert_close(network(x), expected.logits)
        assert hook_count(network) == 2
    assert hook_count(network) == 0


def test_with_removes_hooks_when_its_body_raises():
    network = Steps()
    tapped = Tapped(network, ["steps.1"])
    with pytest.raises(RuntimeError, match="channels"), tapped:
        tapped(torch.randn(2, 5, 8, 8))
    assert hook_count(network) == 0


def test_a_path_that_no_longer_exists_leaves_no_hook():
    network = Steps()
    tapped = Tapped(network, ["steps.1", "head"])
    del network.head
    with pytest.raises(TapError, match="Steps has no module 'head'"):
        tapped(images())
    assert hook_count(network) == 0


def test_a_replaced_module_is_read():
    network = counted()
    tapped = Tapped(network, ["b"])
    network.b = nn.Identity()
    torch.testing.assert_close(tapped(x := images())["b"], 2 * x)


def test_several_tapped_share_one_network():
    network, x = counted(), images()
    first, second = Tapped(network, ["a", "d"]), Tapped(network, ["d:input"], until="taps")
    with first, second:
        for _ in range(2):
            torch.testing.assert_close(first(x)["d"], 16 * x)
            reading = second(x)
            torch.testing.assert_close(reading["d:input"], 8 * x)
            assert list(reading.maps) == [Tap("d", "input")]
            assert reading.logits is None
    assert calls(network) == [4, 4, 4, 2, 2]
    assert hook_count(network) == 0


def test_one_tapped_can_read_another():
    network, x = counted(), images()
    reading = Tapped(Tapped(network, ["d"]), ["network.a", "network.b"], until="taps")(x)
    torch.testing.assert_close(reading["network.b"], 4 * x)
    assert reading.logits is None
    assert calls(network) == [1, 1, 0, 0, 0]
    assert hook_count(network) == 0


def test_logits_after_a_stop_that_the_network_caught_are_none():
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.fallback = Count(), Count()

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.first(x)
            except Exception:
                return self.fallback(x)

    reading = Tapped(Careful(), ["first"], until="taps")(x := images())
    torch.testing.assert_close(reading["first"], 2 * x)
    assert reading.logits is None


@pytest.mark.parametrize("until", ["logits", "taps"])
def test_maps_die_with_their_reading(until):
    tapped = Tapped(Steps(), ["steps.1"], until)
    gc.disable()
    try:
        reading = tapped(images())
        alive = weakref.ref(reading["steps.1"])
        del reading
        assert alive() is None
    finally:
        gc.enable()


def test_a_copy_reads_its_own_network():
    tapped, x = Tapped(counted(), ["b"], until="c"), images()
    for other in (copy.deepcopy(tapped), pickle.loads(pickle.dumps(tapped))):
        torch.testing.assert_close(other(x)["b"], 4 * x)
        assert calls(other.network) == [1, 1, 1, 0, 0]
    assert calls(tapped.network) == [0] * 5


def test_a_recomputing_backward_is_not_a_second_reading():
    class Checkpointed(Steps):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    network, x = Checkpointed(), images()
    with Tapped(network, ["steps.3"]) as tapped:
        for _ in range(2):
            tapped(x)["steps.3"].sum().backward()
    assert network.steps[0].weight.grad.abs().sum() > 0
