"""What a reading holds."""

import copy
from dataclasses import FrozenInstanceError, dataclass
from typing import NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from flowstill.errors import TapError
from flowstill.features.taps import Tap, Tapped
from flowstill.nets.resnet import ResNet
from support.tap_networks import Steps, hook_count, images


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_maps_equal_torchvisions_feature_extractor():
    network = torchvision.models.resnet18(num_classes=7).eval()
    x = images(64)
    nodes = {"layer2": "layer2", "layer1.0.conv1": "layer1.0.conv1", "flatten": "fc:input", "fc": "logits"}
    expected = create_feature_extractor(network, nodes)(x)
    reading = Tapped(network, ["fc:input", "layer2", Tap("layer1.0.conv1")])(x)
    assert reading.images is x
    assert [str(tap) for tap in reading.maps] == ["fc:input", "layer2", "layer1.0.conv1"]
    for tap in reading.maps:
        torch.testing.assert_close(reading[tap], expected[str(tap)], rtol=0, atol=0)
    torch.testing.assert_close(reading.logits, expected["logits"], rtol=0, atol=0)


def test_gradients_pass_through_the_maps():
    network, x = Steps(), images()
    Tapped(network, ["steps.2"], until="taps")(x)["steps.2"].square().sum().backward()
    found = [step.weight.grad for step in network.steps]
    assert found[3] is None
    expected = copy.deepcopy(network)
    expected.zero_grad()
    y = x
    for step in expected.steps[:2]:
        y = torch.tanh(step(y))
    expected.steps[2](y).square().sum().backward()
    for grad, step in zip(found[:3], expected.steps, strict=False):
        torch.testing.assert_close(grad, step.weight.grad)


def test_the_empty_path_is_the_network_itself():
    network, x = Steps(), images()
    reading = Tapped(network, [":input", ""])(x)
    assert reading[":input"] is x
    assert reading[""] is reading.logits
    assert Tapped(network, ":input", until="taps")(x)[":input"] is x


def test_an_input_given_by_keyword_is_read():
    class Caller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(input=x)

    x = images()
    assert Tapped(Caller(), ["conv:input"])(x)["conv:input"] is x


def test_reading_is_frozen_and_says_what_it_holds():
    reading = Tapped(Steps(), ["steps.1"])(images())
    with pytest.raises(FrozenInstanceError):
        reading.logits = None
    with pytest.raises(TapError, match=r"Tap 'steps\.2' was not read\. Did you mean 'steps\.1'\?"):
        reading["steps.2"]


def test_a_tap_is_parsed():
    assert Tap.parse("fc:input") == Tap("fc", "input")
    assert Tap.parse("fc:output") == Tap.parse("fc") == Tap("fc")
    with pytest.raises(TapError, match=r"'fc:in'.*expected 'output' or 'input' after the colon\. Received: 'in'"):
        Tap.parse("fc:in")


def test_a_single_tap_is_not_taken_letter_by_letter_and_a_repeated_one_counts_once():
    assert Tapped(Steps(), "act").taps == Tapped(Steps(), Tap("act")).taps == (Tap("act"),)
    assert Tapped(Steps(), ["head", Tap("head")], until="taps")(images()).maps.keys() == {Tap("head")}


class Named(NamedTuple):
    logits: Tensor
    auxiliary: Tensor


@dataclass
class Answer:
    loss: Tensor | None
    logits: Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: (y, -y),
        lambda y: [y, -y],
        lambda y: {"auxiliary": -y, "logits": y},
        lambda y: {"out": y, "auxiliary": -y},
        lambda y: Named(y, -y),
        lambda y: Answer(None, y),
        lambda y: (None, {"out": y}),
    ],
)
def test_logits_are_found_in_the_output(wrap):
    network, x = Steps(wrap), images()
    plain = Steps()
    plain.load_state_dict(network.state_dict())
    torch.testing.assert_close(Tapped(network)(x).logits, plain(x))


def test_logits_of_googlenet_in_train_mode():
    network = torchvision.models.googlenet(num_classes=5, init_weights=False).train()
    reading = Tapped(network, ["inception4a"])(images(64))
    assert reading.logits.shape == (2, 5)
    assert reading["inception4a"].shape == (2, 512, 4, 4)


def test_a_forward_without_tensors_is_refused():
    with pytest.raises(TapError, match=r"Expected a tensor of logits from the network's forward. Received: str"):
        Tapped(Steps(lambda y: "seven"))(images())


@pytest.mark.parametrize(
    ("give", "ok"),
    [
        (lambda x: (x.mean((1, 2, 3)), x), True),
        (lambda x: {"pooled": x.mean((2, 3)), "map": x}, True),
        (lambda x: (x.mean((2, 3)), None), False),
        (lambda x: None, False),
    ],
)
def test_the_first_map_is_taken_from_a_module_with_several_outputs(give, ok):
    class Give(nn.Module):
        def forward(self, x: Tensor):
            return give(x)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.give = Give()

        def forward(self, x: Tensor) -> Tensor:
            self.give(x)
            return x.mean((2, 3))

    x, tapped = images(), Tapped(Whole(), ["give"])
    if ok:
        assert tapped(x)["give"] is x
    else:
        with pytest.raises(TapError, match=r"Tap 'give': expected a tensor of shape \(B, D, H, W\). Received: \w+"):
            tapped(x)
        assert hook_count(tapped.network) == 0


def test_meta_tensors_are_read():
    with torch.device("meta"):
        reading = Tapped(ResNet(8), ["layer3"])(torch.empty(2, 3, 32, 32))
    assert reading["layer3"].shape == (2, 64, 8, 8)


@pytest.mark.parametrize("until", ["logits", "taps"])
def test_under_autocast_maps_keep_the_dtype_of_the_forward(until):
    network, x = ResNet(8).eval(), images(16)
    with torch.autocast("cpu", torch.bfloat16):
        reading = Tapped(network, ["conv1", "layer2"], until)(x)
        assert torch.is_autocast_enabled("cpu")
    assert reading["conv1"].dtype == torch.bfloat16
    full = Tapped(network, ["conv1", "layer2"], until)(x)
    torch.testing.assert_close(reading["layer2"].float(), full["layer2"], rtol=0.05, atol=0.05)
    reading["layer2"].float().sum().backward()
    assert network.conv1.weight.grad.dtype == torch.float32
