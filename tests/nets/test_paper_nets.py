"""The papers' networks: sizes that the papers print, and what they compute."""

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

import flowstill as fs
from flowstill.errors import NetworkError
from flowstill.nets import count, create, libraries
from flowstill.nets.resnext import Block, PoolAndPad
from support.paper_networks import CIFAR, IMAGENET, modules, on_meta

STUDENTS = ["resnet8-kr", "vgg-student", "vgg-student-strided", "mobilenet-student", "resnext-student"]
OWN = [*STUDENTS, "vgg-teacher", "mobilenet-teacher", "resnext-teacher", "resnet20-imagenet", "inception-bn"]


def map_sizes(network, kind, shape):
    """How many numbers each module of this kind puts out for one image."""
    sizes = []
    for module in modules(network, kind):
        module.register_forward_hook(lambda _m, _i, out: sizes.append(out.numel()))
    network.eval()(torch.zeros(1, *shape, device=next(network.parameters()).device))
    return sizes


@pytest.mark.parametrize(
    ("name", "classes", "options", "parameters", "mega"),  # 2 x multiply-accumulates; None where none are given
    [
        ("vgg-teacher", 100, {}, 10_885_540, 576.27),
        ("vgg-student", 100, {}, 3_751_652, 121.18),
        ("vgg-student-strided", 100, {}, 2_178_788, 16.92),
        ("vgg-student-strided", 100, {"padding": "SAME"}, 3_751_652, 33.60),
        ("mobilenet-teacher", 100, {}, 2_234_276, 96.83),
        ("mobilenet-student", 100, {}, 816_676, 36.78),
        ("resnext-teacher", 100, {}, 654_116, 542.56),
        ("resnext-student", 100, {}, 341_284, 273.07),
        ("resnext-student", 100, {"branches": 4}, 654_116, 542.56),
        ("resnet34-imagenet", 200, {}, 21_387_272, None),
        ("resnet20-imagenet", 200, {}, 12_459_784, None),
        ("resnet8-kr", 10, {}, 116_890, None),
        ("resnet8-kr", 10, {"width": [28, 56]}, 90_242, None),
    ],
)
def test_sizes_match_the_specification(name, classes, options, parameters, mega):
    counts = count(on_meta(name, classes, **options), CIFAR)
    assert counts.parameters == parameters
    assert mega in (None, round(2 * counts.macs / 1e6, 2))


# Lee et al. (2018), Table 1: MFLOPs and million parameters. Left out are the strided student of Table 2, whose two
# numbers belong to different networks, and the MFLOPs of the ResNeXt student.
@pytest.mark.parametrize(
    ("name", "mega", "millions"),
    [
        ("vgg-teacher", 576.3, 10.9),
        ("vgg-student", 121.3, 3.8),
        ("mobilenet-teacher", 98.4, 2.3),
        ("mobilenet-student", 37.8, 0.82),
        ("resnext-teacher", 547.3, 0.66),
        ("resnext-student", None, 0.34),
    ],
)
def test_sizes_match_the_paper(name, mega, millions):
    counts = count(on_meta(name), CIFAR)
    assert counts.parameters / 1e6 == pytest.approx(millions, rel=0.03)
    if mega is not None:
        assert 2 * counts.macs / 1e6 == pytest.approx(mega, rel=0.03)


@pytest.mark.parametrize(("name", "paper"), [("mobilenet-teacher", 98.4), ("mobilenet-student", 37.8)])
def test_mobilenet_has_the_papers_operations_including_norms_and_pooling(name, paper):
    macs = count(on_meta(name), CIFAR).macs
    norms = 4 * sum(map_sizes(on_meta(name), nn.BatchNorm2d, CIFAR))
    assert round((2 * macs + norms + 1024 * 4 * 4) / 1e6, 1) == paper


def test_strided_vgg_has_the_papers_operations_without_fully_connected_layers():
    network = on_meta("vgg-student-strided")
    connected = sum(layer.weight.numel() for layer in modules(network, nn.Linear))
    macs = count(network, CIFAR).macs - connected
    sums = sum(map_sizes(network, nn.Conv2d, CIFAR))  # of 9 D products each, 9 D - 1
    assert round(2 * macs / 1e6, 2) == 15.67
    assert round((2 * macs - sums) / 1e6, 2) == 15.65


def test_inception_bn_has_the_papers_size_and_maps():
    network = on_meta("inception-bn", 1000)
    biases = sum(conv.out_channels for conv in modules(network, nn.Conv2d))  # the published network has them
    assert count(network, IMAGENET).parameters + biases == 11_295_240
    shapes = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _m, _i, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    network.eval()(torch.zeros(1, *IMAGENET, device="meta"))
    expected = {"conv1": (64, 112), "pool1": (64, 56), "conv2": (192, 56), "pool2": (192, 28)}
    expected |= {"inception3a": (256, 28), "inception3b": (320, 28), "inception3c": (576, 14)}
    expected |= {f"inception4{letter}": (576, 14) for letter in "ab"}
    expected |= {f"inception4{letter}": (608, 14) for letter in "cd"}  # 576 in the paper, but its branches have 608
    expected |= {"inception4e": (1056, 7), "inception5a": (1024, 7), "inception5b": (1024, 7)}
    assert {name: shapes[name] for name in expected} == {name: (d, s, s) for name, (d, s) in expected.items()}
    pools = [kind for kind in modules(network, (nn.AvgPool2d, nn.MaxPool2d)) if kind.kernel_size == 3][2:]
    assert "".join(type(pool).__name__[0] for pool in pools) == "AAMAAAAMAM"


@pytest.mark.parametrize("name", OWN)
def test_odd_image_sizes_run_forward_and_train(name):
    torch.manual_seed(0)
    network = create(name, 5, in_channels=1)
    side = 64 if name in ("resnet20-imagenet", "inception-bn") else 32
    images, labels = torch.randn(3, 1, side, side), torch.tensor([0, 1, 4])
    assert network.eval()(images).shape == (3, 5)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    loss = functional.cross_entropy(network.train()(images), labels)
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in network.parameters())
    assert functional.cross_entropy(network(images), labels).isfinite()


@pytest.mark.parametrize("name", [*STUDENTS, "inception-bn"])
def test_initialisation_is_hes(name):
    torch.manual_seed(0)
    for module in modules(create(name, 100), (nn.Conv2d, nn.Linear)):
        n, fan_in = module.weight.numel(), module.weight[0].numel()
        std = math.sqrt(2 / fan_in)
        # five standard errors of a normal sample's mean and deviation
        assert abs(module.weight.mean()) < 5 * std / math.sqrt(n)
        assert abs(module.weight.std() / std - 1) < 5 / math.sqrt(2 * n)
        assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize(("name", "places"), [("vgg-teacher", 2), ("vgg-student", 1), ("vgg-student-strided", 1)])
def test_vgg_drops_half_of_its_hidden_units_in_training(name, places):
    assert [drop.p for drop in modules(on_meta(name), nn.Dropout)] == [0.5] * places
    assert [drop.p for drop in modules(on_meta(name, dropout=0.1), nn.Dropout)] == [0.1] * places


def normed(x, norm, own=slice(None)):
    return functional.batch_norm(x, *(v[own] for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)))


@pytest.mark.parametrize(("channels", "stride"), [(4, 1), (9, 2)])
def test_a_resnext_block_is_its_branches_side_by_side(channels, stride):
    torch.manual_seed(0)
    block = Block(4, channels, stride, branches=3).double().eval()
    for norm in modules(block, nn.BatchNorm2d):
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            value.data.uniform_(0.5, 1.5)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    reduce, spatial = block.reduce, block.branches
    maps = []
    for branch in range(3):
        own = slice(64 * branch, 64 * (branch + 1))
        y = normed(functional.conv2d(x, reduce.conv.weight[own]), reduce.bn, own).clamp(min=0)
        y = functional.conv2d(y, spatial.conv.weight[own], stride=stride, padding=1)
        maps.append(normed(y, spatial.bn, own).clamp(min=0))
    residual = normed(functional.conv2d(torch.cat(maps, 1), block.join.weight), block.bn)
    shortcut = x
    if stride == 2:
        shortcut = torch.zeros(2, channels, 3, 3, dtype=x.dtype)
        for row in range(3):
            for column in range(3):
                shortcut[:, 2:6, row, column] = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((2, 3))
    torch.testing.assert_close(block(x), (residual + shortcut).clamp(min=0))


def test_the_pooled_shortcut_rounds_up_as_the_convolution_beside_it():
    assert PoolAndPad(3)(torch.ones(1, 2, 5, 7)).shape == (1, 5, 3, 4)
    assert on_meta("resnext-student")(torch.zeros(2, 3, 27, 31, device="meta")).shape == (2, 100)


def test_imagenet_resnets_have_torchvisions_names(tmp_path):
    theirs = torchvision.models.resnet34(num_classes=3)
    file = tmp_path / "resnet34.safetensors"
    fs.nets.save_weights(theirs, file)
    ours = create("resnet34-imagenet", 3, weights=file)
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())
    shorter = on_meta("resnet20-imagenet", 3).state_dict()
    shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert all(shapes[name] == tuple(value.shape) for name, value in shorter.items())
    missing = {name.rpartition(".conv")[0] for name in shapes.keys() - shorter.keys() if ".conv" in name}
    assert missing == {"layer1.2", "layer2.2", "layer2.3", "layer3.3", "layer3.4", "layer3.5", "layer4.2"}


@pytest.mark.parametrize("name", ["resnet34", "resnet101"])
def test_pretrained_equals_torchvision(name, monkeypatch):
    asked = []
    monkeypatch.setattr(libraries, "make", lambda *arguments: asked.append(arguments) or nn.Identity())
    create(f"{name}-imagenet", 200, pretrained=True)
    assert asked == [("torchvision", name, 200, 3, {"pretrained": True}, True)]


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("vgg-techer", {}, "Did you mean 'vgg-teacher'"),
        ("vgg-teacher", {"dropuot": 0.1}, "vgg-teacher has no option 'dropuot'. Did you mean 'dropout'"),
        ("vgg-teacher", {"dropout": 1.0}, "dropout 1.0: give a probability from 0 to below 1"),
        ("vgg-student", {"padding": "SAME"}, "vgg-student has no option 'padding'. Choose from 'dropout'"),
        ("vgg-student-strided", {"padding": "same"}, "padding 'same': choose 'VALID' .* or 'SAME'"),
        ("mobilenet-teacher", {"width": 2}, "mobilenet-teacher has no option 'width'. It takes no options"),
        ("resnext-student", {"branchs": 2}, "Did you mean 'branches'"),
        ("resnext-student", {"branches": 0}, "branches 0: give a whole number from 1"),
        ("resnet8-kr", {"width": 2}, r"width 2: give the channels of the two modules, such as \[28, 56\]"),
        ("resnet8-kr", {"width": [28, 56, 64]}, "two modules"),
        ("resnet8-kr", {"width": [8, 56]}, r"width \[8, 56\]: .* at least 16, the first convolution's"),
        ("resnet8-kr", {"width": [64, 32]}, "that do not decrease"),
        ("resnet20-imagenet", {"pretrained": True}, "resnet20-imagenet has no option 'pretrained'"),
        ("resnet34-imagenet", {"zero_init": True}, "no option 'zero_init'. Did you mean 'zero_init_residual'"),
        ("inception-bn", {"num_classes": 0}, "Expected a whole number from 1 for num_classes"),
    ],
)
def test_bad_names_and_options_give_one_clear_error(name, options, what):
    with pytest.raises(NetworkError, match=what):
        create(name, **options)


def test_a_vgg_refuses_a_wrong_image_size():
    with pytest.raises(NetworkError, match=r"VGG cannot take an image of shape \(3, 28, 28\)"):
        count(on_meta("vgg-student"), (3, 28, 28))
