"""Checkpoints with names, heads or types that differ slightly from the network's."""

import logging

import pytest
import torch
from torch import nn

from flowstill.errors import NetworkError
from flowstill.nets import ResNet, create, load_weights, save_weights


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def renamed(state, **names):
    """The state with the names of some layers replaced."""
    return {".".join(names.get(part, part) for part in name.split(".")): tensor for name, tensor in state.items()}


def prefixed(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("save", [torch.save, save_weights])
@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "backbone.", "architecture.", "any.other.", "model.module._orig_mod."]
)
def test_a_common_prefix_is_dropped_with_a_notice(prefix, save, tmp_path, caplog):
    source, target = ResNet(8), ResNet(8)
    save(prefixed(prefix, source.state_dict()), tmp_path / "w")
    caplog.set_level(logging.WARNING, "flowstill")
    (notice,) = load_weights(target, tmp_path / "w")
    assert "its names begin with" in notice
    assert notice in caplog.messages
    assert same(target.state_dict(), source.state_dict())


def test_a_prefix_that_the_network_also_has_is_kept(tmp_path):
    source, target = (nn.Sequential() for _ in range(2))
    for network in (source, target):
        network.add_module("model", ResNet(8))
    save_weights(source, tmp_path / "w")
    assert load_weights(target, tmp_path / "w") == []
    assert same(target.state_dict(), source.state_dict())


@pytest.mark.parametrize("infix", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module."])
def test_wrappers_within_the_network_leave_no_trace(infix, tmp_path):
    source, target = ResNet(8), ResNet(8)
    state = {name.replace("layer2.", f"layer2.{infix}"): tensor for name, tensor in source.state_dict().items()}
    save_weights(state, tmp_path / "w")
    assert load_weights(target, tmp_path / "w") == []
    assert same(target.state_dict(), source.state_dict())


@pytest.mark.parametrize(
    ("one", "other"), [("teacher.", "student."), ("generator.", "discriminator."), ("model.a.", "model.b.")]
)
def test_two_networks_by_prefix_need_a_name(one, other, tmp_path):
    networks = {one: ResNet(14), other: ResNet(8)}
    state = {name: t for prefix, net in networks.items() for name, t in prefixed(prefix, net.state_dict()).items()}
    save_weights(state, tmp_path / "w")
    for prefix, network in networks.items():
        target = ResNet(14 if prefix == one else 8)
        before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
        with pytest.raises(NetworkError, match="holds several networks") as caught:
            load_weights(target, tmp_path / "w")
        assert all(f"'{name.strip('.')}'" in str(caught.value) for name in networks)
        assert same(target.state_dict(), before)
        assert load_weights(target, f"{tmp_path}/w#{prefix.strip('.')}") == []
        assert same(target.state_dict(), network.state_dict())


@pytest.mark.parametrize("name", ["criterion.weight", "loss.centers", "queue"])
def test_a_loss_beside_the_network_is_left_out_with_a_notice(name, tmp_path):
    source, target = ResNet(8), ResNet(8)
    state = prefixed("model.", source.state_dict()) | {name: torch.ones(10, *[3] * (name != "criterion.weight"))}
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    (notice,) = load_weights(target, tmp_path / "w.ckpt")
    assert f"left out {name!r}" in notice
    assert same(target.state_dict(), source.state_dict())


@pytest.mark.parametrize("save", [torch.save, save_weights])
@pytest.mark.parametrize("head", ["linear", "classifier.1", "head.fc"])
def test_a_head_under_another_name(head, save, tmp_path):
    source, target = ResNet(8), ResNet(8)
    save(renamed(source.state_dict(), fc=head), tmp_path / "w")
    (notice,) = load_weights(target, tmp_path / "w")
    assert f"'{head}.*' -> 'fc.*'" in notice
    assert same(target.state_dict(), source.state_dict())


def test_a_head_beside_the_backbone(tmp_path):
    source, target = ResNet(8), ResNet(8)
    trunk = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("fc.")}
    save_weights(prefixed("backbone.", trunk) | prefixed("head.fc.", source.fc.state_dict()), tmp_path / "w")
    first, second = load_weights(target, tmp_path / "w")
    assert "'backbone.'" in first
    assert "'head.fc.*' -> 'fc.*'" in second
    assert same(target.state_dict(), source.state_dict())


def test_shortcuts_under_another_name(tmp_path):
    source, target = create("torchvision:resnet18", 10), create("torchvision:resnet18", 10)
    save_weights(renamed(source.state_dict(), downsample="shortcut", fc="linear"), tmp_path / "w")
    (notice,) = load_weights(target, tmp_path / "w")
    assert "'layer2.0.shortcut.0.*' -> 'layer2.0.downsample.0.*'" in notice
    assert same(target.state_dict(), source.state_dict())


def test_a_head_for_other_classes_under_another_name_stays_fresh(tmp_path):
    source, target = ResNet(8, num_classes=7), ResNet(8)
    save_weights(renamed(source.state_dict(), fc="linear"), tmp_path / "w")
    head = target.fc.weight.clone()
    first, second = load_weights(target, tmp_path / "w")
    assert "'linear.*' -> 'fc.*'" in first
    assert "the head 'fc' has 7 classes, the network 10; the head starts from fresh weights" in second
    assert torch.equal(target.fc.weight, head)
    assert torch.equal(target.conv1.weight, source.conv1.weight)
    assert create("resnet8", weights=tmp_path / "w").fc.out_features == 7


class TwoHeads(nn.Module):
    def __init__(self, first, second, shared=8):
        super().__init__()
        self.trunk = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(4)))
        self.add_module(first, nn.Linear(shared, 5))
        self.add_module(second, nn.Linear(8, 5))


def test_two_layers_that_could_be_either_are_an_error(tmp_path):
    save_weights(TwoHeads("right", "left"), tmp_path / "w")
    target = TwoHeads("one", "two")
    with pytest.raises(NetworkError, match=r"it lacks 'one.weight'.*the network has no 'left.bias'"):
        load_weights(target, tmp_path / "w")
    save_weights(TwoHeads("right", "left", shared=9), tmp_path / "w")
    target = TwoHeads("one", "two", shared=9)
    (notice,) = load_weights(target, tmp_path / "w")
    assert (
        "'right.*' -> 'one.*', 'left.*' -> 'two.*'" in notice or "'left.*' -> 'two.*', 'right.*' -> 'one.*'" in notice
    )


def test_a_network_with_other_names_throughout_is_an_error(tmp_path):
    source = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3))
    save_weights(renamed(source.state_dict(), **{"0": "first", "1": "second"}), tmp_path / "w")
    with pytest.raises(NetworkError, match=r"No name matches.*begin with 'first' and 'second'"):
        load_weights(source, tmp_path / "w")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted(dtype, tmp_path):
    source, target = ResNet(8).to(dtype), ResNet(8)
    save_weights(source, tmp_path / "w")
    assert load_weights(target, tmp_path / "w") == []
    assert target.fc.weight.dtype == torch.float32
    assert torch.equal(target.fc.weight, source.fc.weight.float())


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_codes_of_weights_are_refused(dtype, tmp_path):
    network = ResNet(8)
    save_weights(network.state_dict() | {"fc.weight": torch.ones(10, 64).to(dtype)}, tmp_path / "w")
    with pytest.raises(NetworkError, match=r"'fc.weight' is (int8|float8_e4m3fn) there, so it is quantised"):
        load_weights(network, tmp_path / "w")


def test_tied_weights_may_be_kept_once(tmp_path):
    def tied():
        network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        network[1].weight = network[0].weight
        return network

    source, target = tied(), tied()
    save_weights({name: t for name, t in source.state_dict().items() if name != "1.weight"}, tmp_path / "w")
    assert load_weights(target, tmp_path / "w") == []
    assert same(target.state_dict(), source.state_dict())
