"""CIFAR ResNets, sizes, and networks by name."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from flowstill import nets
from flowstill.errors import NetworkError
from flowstill.nets import ResNet, build, count, create, known_nets
from flowstill.nets.resnet import ZeroPad


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "options", "expected"),
    [
        ("resnet8", 10, {}, 75_290),
        ("resnet8", 10, {"shortcut": "B"}, 78_042),
        ("resnet26", 10, {}, 366_938),
        ("resnet26", 10, {"shortcut": "B"}, 369_690),
        ("resnet14", 100, {}, 178_356),
        ("resnet14", 100, {"shortcut": "B"}, 181_108),
        ("resnet32", 10, {}, 464_154),
        ("resnet32", 10, {"shortcut": "B"}, 466_906),
        ("resnet32", 100, {}, 470_004),
        ("resnet32", 100, {"shortcut": "B"}, 472_756),
        ("resnet32x4", 100, {}, 7_409_316),
        ("resnet32x4", 100, {"shortcut": "B"}, 7_451_044),
        ("resnet14x4", 100, {}, 2_759_076),
        ("resnet14", 100, {"width": 4, "shortcut": "B"}, 2_800_804),
        ("resnet8", 10, {"width": [14, 28, 56]}, 57_816),
        ("resnet8", 10, {"width": [11, 21, 43]}, 34_053),
        ("resnet14", 100, {"width": (11, 21, 43)}, 81_711),
        ("resnet14", 100, {"width": (15, 30, 60)}, 157_225),
    ],
)
def test_parameters_match_the_specification(name, classes, options, expected):
    with torch.device("meta"):
        assert parameters(create(name, classes, **options)) == expected


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [("resnet8", 10, 12.24), ("resnet26", 10, 54.71), ("resnet14", 100, 26.40), ("resnet32", 100, 68.87)],
)
def test_macs_match_the_specification(name, classes, millions):
    on_cpu = count(create(name, classes), (3, 32, 32))
    with torch.device("meta"):
        assert count(create(name, classes), (3, 32, 32)) == on_cpu
    assert round(on_cpu.macs / 1e6, 2) == millions


def batch_norm(state, name, x):
    mean, var, gain, bias = (
        state[f"{name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * gain + bias


def padded_copy(x, channels, stride):
    height, width = math.ceil(x.shape[2] / stride), math.ceil(x.shape[3] / stride)
    y = torch.zeros(len(x), channels, height, width, dtype=x.dtype)
    for channel in range(x.shape[1]):
        for row in range(height):
            for column in range(width):
                y[:, channel, row, column] = x[:, channel, row * stride, column * stride]
    return y


def forward_by_hand(state, depth, x):
    x = batch_norm(state, "bn1", functional.conv2d(x, state["conv1.weight"], padding=1)).clamp(min=0)
    for section in (1, 2, 3):
        for block in range((depth - 2) // 6):
            here, stride = f"layer{section}.{block}", 2 if section > 1 and block == 0 else 1
            y = functional.conv2d(x, state[f"{here}.conv1.weight"], stride=stride, padding=1)
            y = batch_norm(state, f"{here}.bn1", y).clamp(min=0)
            y = batch_norm(state, f"{here}.bn2", functional.conv2d(y, state[f"{here}.conv2.weight"], padding=1))
            x = (y + padded_copy(x, y.shape[1], stride)).clamp(min=0)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize(("depth", "size"), [(8, (12, 12)), (14, (9, 7))])
def test_the_forward_is_the_papers(depth, size):
    network = ResNet(depth, num_classes=5, in_channels=2, width=0.25).double()
    for name, value in network.state_dict().items():
        if "bn" in name and value.is_floating_point():  # not the start's 0 and 1, which hide mistakes
            value.uniform_(0.5, 1.5)
    images = torch.randn(2, 2, *size, dtype=torch.float64)
    expected = forward_by_hand(network.state_dict(), depth, images)
    torch.testing.assert_close(network.eval()(images), expected)


def test_zero_pad_copies_every_second_pixel_into_the_first_channels():
    x = torch.randn(2, 3, 5, 4)
    assert torch.equal(ZeroPad(3, 7, stride=2)(x), padded_copy(x, 7, 2))


def test_the_usual_initialisation_is_by_fan_out():
    torch.manual_seed(0)
    network = ResNet(20, width=2, shortcut="B")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            n, std = module.weight.numel(), math.sqrt(2 / fan_out)
            # five standard errors of a normal sample's mean and deviation
            assert abs(module.weight.mean()) < 5 * std / math.sqrt(n)
            assert abs(module.weight.std() / std - 1) < 5 / math.sqrt(2 * n)
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert not module.bias.any()
    assert not network.fc.bias.any()


def test_other_initialisations():
    torch.manual_seed(0)
    xavier, orthogonal = ResNet(20, init="xavier"), ResNet(20, init="orthogonal")
    for one, other in zip(xavier.modules(), orthogonal.modules(), strict=True):
        if isinstance(one, nn.Conv2d):
            fans = (one.in_channels + one.out_channels) * math.prod(one.kernel_size)
            bound = math.sqrt(6 / fans)
            assert 0.98 * bound < one.weight.abs().max() <= bound
            rows = other.weight.flatten(1).double()
            torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64), rtol=0, atol=1e-5)
    with pytest.raises(NetworkError, match="init 'mrsa': choose 'he', 'xavier', 'orthogonal', 'msra'"):
        ResNet(8, init="mrsa")


def test_no_map_is_overwritten_after_it_was_made():
    network = ResNet(8, shortcut="B")
    kept = []
    for module in network.modules():
        module.register_forward_hook(lambda _m, _i, out: kept.append((out, out._version, out.detach().clone())))
    network(torch.randn(2, 3, 8, 8))
    assert len(kept) > 30
    assert all(out._version == version and torch.equal(out, was) for out, version, was in kept)


def test_sections_are_sequences_with_the_names_that_taps_use():
    network = create("resnet26")
    names = dict(network.named_modules())
    assert [len(names[f"layer{s}"]) for s in (1, 2, 3)] == [4, 4, 4]
    for name in ("conv1", "bn1", "relu", "layer2.0.conv1", "layer2.0.bn2", "layer2.0.relu2", "layer2.0.shortcut", "fc"):
        assert name in names


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (28, 28), (33, 47)])
def test_any_image_size(size):
    assert create("resnet8", 7, in_channels=1)(torch.zeros(2, 1, *size)).shape == (2, 7)


def test_resnet_can_be_exported_copied_and_trained():
    network = create("resnet8").eval()
    images = torch.randn(2, 3, 16, 16)
    exported = torch.export.export(network, (images,)).module()
    torch.testing.assert_close(exported(images), network(images))
    twin = copy.deepcopy(network)
    assert torch.equal(twin(images), network(images))
    functional.cross_entropy(twin.train()(images), torch.tensor([0, 1])).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in twin.parameters())
    assert all(p.grad is None for p in network.parameters())


def test_count_counts_groups_attention_and_frozen_networks_rightly():
    grouped = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=4), nn.Conv2d(16, 16, 5, stride=2, groups=16))
    assert count(grouped, (8, 10, 10)).macs == 100 * 16 * 2 * 9 + 9 * 16 * 25

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)

        def forward(self, x):
            return self.layer(x.flatten(2).mT)

    tokens, width, hidden = 12, 8, 16
    expected = tokens * width * (4 * width + 2 * hidden) + 2 * tokens * tokens * width
    if torch.torch_version.TorchVersion(torch.__version__) >= (2, 15):  # torch 2.9 does not see its fused attention
        assert count(Attention().requires_grad_(False), (8, 3, 4)).macs == expected


def test_counting_leaves_the_network_unchanged():
    network = create("resnet8")
    network.layer2.eval()
    modes = [m.training for m in network.modules()]
    before = {k: v.clone() for k, v in network.state_dict().items()}
    count(network, (3, 8, 8))
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    shared = nn.Linear(4, 4)
    assert count(nn.Sequential(shared, shared), (4,)).parameters == 20
    with pytest.raises(NetworkError, match=r"ResNet cannot take an image of shape \(1, 8, 8\)"):
        count(network, (1, 8, 8))
    assert [m.training for m in network.modules()] == modes


@pytest.mark.parametrize("name", known_nets())
def test_every_listed_network_can_be_built_on_meta(name):
    with torch.device("meta"):
        network = create(name, num_classes=3)
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert all(p.is_meta for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("resnet9", {}, "6n\\+2, from 8 to 1202, not 9. Nearest: resnet8 or resnet14."),
        ("resnet2000", {}, "resnet1202"),
        ("resnet18", {}, "Did you mean 'timm:resnet18' or 'torchvision:resnet18'"),
        ("resent8", {}, "Did you mean 'resnet8'"),
        ("mobilenetv2_100", {}, "Did you mean 'timm:mobilenetv2_100'"),
        ("tim:resnet18", {}, "unknown library 'tim'. Did you mean 'timm'"),
        ("timm:resnte18", {}, "Did you mean 'resnet18'"),
        ("timm:resnet18.a1_in2k", {}, "Did you mean 'resnet18.a1_in1k'"),
        ("torchvision:mobilnet_v2", {}, "Did you mean 'mobilenet_v2'"),
        ("nets/mine.py", {}, "write 'nets/mine.py:FUNCTION'"),
        ("resnet8", {"widht": 2}, "no option 'widht'. Did you mean 'width'"),
        ("resnet8x2", {"width": 2}, "gives the width in its name"),
        ("resnet8", {"width": 0}, "width 0: give a factor above 0"),
        ("resnet8", {"width": [1, 2]}, "three whole numbers"),
        ("resnet8", {"width": [64, 32, 16]}, "cannot drop channels"),
        ("resnet8", {"shortcut": "C"}, "choose 'A'"),
        ("resnet8", {"num_classes": 0}, "Expected a whole number from 1 for num_classes. Received: 0"),
        ("resnet8", {"in_channels": 2.0}, "Expected a whole number from 1 for in_channels"),
        ("timm:resnet18", {"drop_rat": 0.1}, "timm:resnet18 has no option 'drop_rat'. Did you mean 'drop_rate'"),
        ("timm:resnet18", {"act_layer": "nope"}, "cannot be built with options {'act_layer': 'nope'}"),
        ("timm:resnet18", {"checkpoint_path": "x.pth"}, "Set 'weights: FILE'"),
        ("timm:resnet18", {"pretrained": "yes"}, "expected true or false for 'pretrained'"),
        ("torchvision:mobilenet_v3_small", {"width_mul": 2}, "Did you mean 'width_mult'"),
        ("torchvision:resnet18", {"zero_init": 1}, "Did you mean 'zero_init_residual'"),
    ],
)
def test_bad_names_and_options_give_one_clear_error(name, options, what):
    with pytest.raises(NetworkError, match=what):
        create(name, **options)


def test_build_from_a_specification():
    network = build(nets.Net("resnet8", {"width": [14, 28, 56]}), num_classes=10)
    assert parameters(network) == 57_816
    for option in ("num_classes", "in_channels", "weights"):
        with pytest.raises(
            NetworkError, match=f"{option!r} is not an option of a network; the (data set|job) decides it"
        ):
            build(nets.Net("resnet8", {option: 1}), num_classes=10)
