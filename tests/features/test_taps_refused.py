"""Taps that cannot be read are refused, with the reason and the fix."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.parallel import DataParallel

from flowstill.errors import TapError
from flowstill.features.modules import module_names
from flowstill.features.taps import Tapped
from flowstill.nets.resnet import ResNet
from support.tap_networks import Steps, assert_same, counted, hook_count, images, inplace_network


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_a_wrong_path_gets_the_three_nearest_names():
    with pytest.raises(TapError, match="ResNet has no module 'layer4' to tap") as error:
        Tapped(ResNet(8), ["layer1", "layer4"])
    assert str(error.value).endswith("Nearest names: 'layer3', 'layer2', 'layer1'.")
    with pytest.raises(TapError, match=r"'layer9\.0'.*'layer[123]\.0', 'layer[123]\.0', 'layer[123]\.0'"):
        Tapped(ResNet(8), until="layer9.0")
    with pytest.raises(TapError, match=r"Tanh has no module 'x'.*no modules inside"):
        Tapped(nn.Tanh(), ["x"])


def test_names_are_relative_to_the_unwrapped_network():
    network = nn.Sequential(nn.Tanh(), nn.Sequential(nn.ReLU()))
    assert module_names(DataParallel(torch.compile(network, backend="eager"))) == ["0", "1", "1.0"]


def test_a_module_that_the_forward_does_not_call():
    with pytest.raises(TapError, match="Tap 'unused' was not reached: Steps's forward does not call this module"):
        Tapped(Steps(), ["steps.0", "unused"])(images())
    with pytest.raises(TapError, match="Tap 'unused:input' was not reached"):
        Tapped(Steps(), ["steps.0"], until="unused:input")(images())


def test_a_list_of_modules_is_never_called():
    with pytest.raises(TapError, match=r"a ModuleList is never called itself.*'steps\.0', .*'steps\.4'\."):
        Tapped(Steps(), ["steps"])(images())


def test_a_tap_after_the_stop():
    with pytest.raises(TapError, match=r"Tap 'd' was not reached: the forward stopped at 'b' before it.*until='d'"):
        Tapped(counted(), ["a", "d"], until="b")(images())


def test_a_module_that_is_called_more_than_once():
    network = Steps()
    with pytest.raises(TapError, match="Tap 'act' is ambiguous: its module is called more than once"):
        Tapped(network, ["act", "head"])(images())
    with pytest.raises(TapError, match=r"Tap 'layer1\.0\.relu:input' is ambiguous"):
        Tapped(torchvision.models.resnet18(), ["layer1.0.relu:input"])(images(32))
    assert hook_count(network) == 0


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    ("tap", "by", "instead"),
    [
        ("bn1", "most likely by 'relu'", "Tap 'relu' instead"),
        ("relu:input", "most likely by 'relu'", "Tap 'relu' instead"),
        ("layer2.0.bn1", r"most likely by 'layer2\.0\.relu'", r"Tap 'layer2\.0\.relu' instead"),
        ("layer2.0.bn2", r"by an operation such as x \+= y", r"Tap 'layer2\.0' instead"),
    ],
)
def test_a_map_that_is_overwritten_is_named(tap, by, instead, grad):
    network = torchvision.models.resnet18().eval()
    said = rf"Tap '{tap}': its map was overwritten in place after it was read, {by}\. {instead}.*until='{tap}'"
    with torch.set_grad_enabled(grad):
        if tap == "relu:input":
            network = inplace_network()
        with pytest.raises(TapError, match=said):
            Tapped(network, [tap])(images(32))
        assert_same(Tapped(network, [tap], "taps")(x := images(32)), Tapped(network, [tap], tap)(x))


def test_an_overwriting_module_can_be_tapped():
    network, x = inplace_network().eval(), images()
    reading = Tapped(network, ["bn1", "relu"])(x)
    torch.testing.assert_close(reading["relu"], network.bn2(reading["bn1"]).relu())


def test_in_inference_mode_a_map_is_safe_from_overwriting():
    network, x = inplace_network().eval(), images()
    with torch.no_grad():
        expected = network.bn2(network.bn1(x))
    with torch.inference_mode():
        reading = Tapped(network, ["bn2", "relu"])(x)
    torch.testing.assert_close(reading["bn2"], expected)
    torch.testing.assert_close(reading["relu"], expected.relu())
    assert (reading["bn2"] < 0).any()
