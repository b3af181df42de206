import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flowstill.errors import NetworkError
from flowstill.features.pairs import pair_sections
from flowstill.features.sections import find_sections
from flowstill.features.taps import Tap, Tapped
from flowstill.nets import create
from support.section_networks import Net, Residual, conv, head, tail, taps


def vgg(convs, stride=False, padding=1):
    """The VGGs of Lee et al. (2018): blocks of 64, 128, 256, 512, each with a pooling or a stride of 2."""
    layers, before = [], 3
    for channels, count in zip((64, 128, 256, 512), convs, strict=True):
        for i in range(count):
            step = 2 if stride and i == count - 1 else 1
            layers += [nn.Conv2d(before, channels, 3, step, padding), nn.ReLU(inplace=True)]
            before = channels
        layers += [] if stride else [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, *head(512))


class Separable(nn.Sequential):
    def __init__(self, before, after, stride=1):
        super().__init__(*conv(before, before, stride=stride, groups=before), *conv(before, after, kernel=1, padding=0))


def mobilenet(flat=False):
    """The MobileNet teacher of Lee et al. (2018): strides at 128, 256 and 512 channels."""
    widths = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
    blocks = [Separable(*w) for w in [*widths, (512, 1024, 1), (1024, 1024, 1)]]
    return nn.Sequential(*conv(3, 32), *(itertools.chain(*blocks) if flat else blocks), *head(1024))


class Gated(nn.Module):
    """An inverted residual without shortcut: expansion, depthwise, squeeze and excitation, projection."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.expand = conv(before, 4 * before, kernel=1, padding=0)
        self.depthwise = conv(4 * before, 4 * before, stride=stride, groups=4 * before)
        self.squeeze, self.excite = nn.Conv2d(4 * before, before, 1), nn.Conv2d(before, 4 * before, 1)
        self.project = conv(4 * before, after, kernel=1, padding=0, act=nn.Identity)

    def forward(self, x):
        x = self.depthwise(self.expand(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.project(gate * x)


def sizes(sections):
    return [s.size[0] for s in sections]


@pytest.mark.parametrize("depth", [8, 26, 32, 56])
def test_cifar_resnets_have_three_sections(depth):
    sections = find_sections(create(f"resnet{depth}"), (3, 32, 32))
    first = [f"layer{i}" if depth == 8 else f"layer{i}.0" for i in (1, 2, 3)]
    assert taps(sections) == list(zip(["relu", "layer1", "layer2"], first, ["layer1", "layer2", "layer3"], strict=True))
    assert [s.entry_shape for s in sections] == [(16, 32, 32), (16, 32, 32), (32, 16, 16)]
    assert [s.first_shape for s in sections] == [s.exit_shape for s in sections]
    assert [s.exit_shape for s in sections] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert [s.scale for s in sections] == [(1, 1), (1 / 2, 1 / 2), (1 / 4, 1 / 4)]


def test_plain_vgg_gives_the_last_activation_of_each_block():
    sections = find_sections(vgg((2, 2, 3, 3)), (3, 32, 32))
    assert taps(sections) == [("1", "3", "3"), ("4", "6", "8"), ("9", "11", "15"), ("16", "18", "22")]
    assert [s.size for s in sections] == [(32, 32), (16, 16), (8, 8), (4, 4)]
    assert [s.pooled_scale[0] * 32 for s in sections] == [16, 8, 4, 2]
    assert taps(find_sections(vgg((1, 1, 1, 1)), (3, 32, 32))) == [("2", "4", "4"), ("5", "7", "7"), ("8", "10", "10")]


@pytest.mark.parametrize(("padding", "expected"), [(0, [7, 3, 1]), (1, [8, 4, 2])])
def test_strided_vgg_pairs_block_by_block_with_the_pooled_vgg(padding, expected):
    teacher, student = vgg((2, 2, 3, 3)), vgg((1, 1, 1, 1), stride=True, padding=padding)
    pairs = pair_sections(teacher, student, (3, 32, 32))
    assert [p.student.size[0] for p in pairs] == expected
    assert [p.teacher.size[0] for p in pairs] == [16, 8, 4]
    # The same blocks: equal channels at both ends.
    assert all(p.teacher.entry_shape[0] == p.student.entry_shape[0] for p in pairs)
    assert all(p.teacher.exit_shape[0] == p.student.exit_shape[0] for p in pairs)


def test_mobilenet_ends_each_section_with_a_whole_separable_block():
    sections = find_sections(mobilenet(), (3, 32, 32))
    assert taps(sections) == [("2", "3", "3"), ("3", "4", "5"), ("5", "6", "7"), ("7", "8", "11")]
    assert [s.exit_shape for s in sections] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (1024, 4, 4)]
    flat = find_sections(mobilenet(flat=True), (3, 32, 32))
    assert [s.exit_shape for s in flat] == [s.exit_shape for s in sections]
    assert [s.entry_shape for s in flat] == [s.entry_shape for s in sections]


def test_stem_pooling_and_head_are_not_sections():
    stem = nn.Sequential(conv(3, 8, stride=2), nn.MaxPool2d(2))
    net = Net(
        stem=stem,
        layer1=Residual(8),
        step=conv(8, 16, stride=2),
        widen=conv(16, 99, kernel=1, padding=0),
        pool=nn.AdaptiveAvgPool2d(1),
        classify=nn.Conv2d(99, 10, 1),
        flat=nn.Flatten(),
    )
    assert taps(find_sections(net, (3, 64, 64))) == [("stem", "layer1", "layer1"), ("layer1", "step", "step")]
    fully_connected = nn.Sequential(*conv(3, 8), *conv(8, 8), nn.Conv2d(8, 16, 32), nn.ReLU(), nn.Flatten())
    assert sizes(find_sections(fully_connected, (3, 32, 32))) == [32]


def test_layers_of_a_strided_block_before_its_stride_are_not_the_exit():
    net = Net(
        stem=conv(3, 8),
        one=Gated(8, 16, 1),
        two=Gated(16, 24, 2),
        three=Gated(24, 32, 1),
        tail=tail(32),
    )
    assert taps(find_sections(net, (3, 16, 16))) == [("stem", "one", "one"), ("one", "two", "three")]
    # A stage that strides at its end keeps its blocks.
    stage = nn.Sequential(Residual(8), Residual(8), nn.Conv2d(8, 16, 2, 2))
    net = Net(stem=conv(3, 8), stage=stage, last=Residual(16), tail=tail(16))
    assert taps(find_sections(net, (3, 16, 16))) == [("stem", "stage.0", "stage.1"), ("stage.1", "last", "last")]


def test_overwritten_maps_are_never_named():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), Residual(8), *head(8))
    assert taps(find_sections(net, (3, 8, 8))) == [("2", "3", "3")]


def test_functional_activations_are_read_at_the_next_input():
    conv1, conv2, between = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), {"bn1": F.relu, "bn2": F.relu}
    bn1, bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
    net = Net(between, conv1=conv1, bn1=bn1, conv2=conv2, bn2=bn2, layer=Residual(8), tail=tail(8))
    assert taps(find_sections(net, (3, 8, 8))) == [("conv2:input", "layer", "layer")]


def test_convolutions_called_as_functions_count():
    class Functional(nn.Module):
        def __init__(self, before, after):
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(after, before, 3, 3))

        def forward(self, x):
            return F.relu(F.conv2d(x, self.kernel, padding=1))

    net = nn.Sequential(Functional(3, 4), Functional(4, 4), nn.MaxPool2d(2), Functional(4, 8), *head(8))
    assert taps(find_sections(net, (3, 8, 8))) == [("0", "1", "1"), ("2", "3", "3")]


def test_unpadded_convolutions_stay_in_one_section():
    net = nn.Sequential(
        *conv(3, 8, padding=0), *conv(8, 8, padding=0), nn.MaxPool2d(2), *conv(8, 8, padding=0), *head(8)
    )
    sections = find_sections(net, (3, 32, 32))  # 30, 28, pooled to 14, 12
    assert [(s.entry_shape[1], s.first_shape[1], s.exit_shape[1]) for s in sections] == [(30, 28, 28), (14, 12, 12)]


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5", "squeezenet1_1"]
)
def test_the_logits_depend_on_the_image_only_through_each_tap(name):
    import torchvision

    net = torchvision.models.get_model(name).eval()
    images = torch.rand(1, 3, 64, 64)
    for section in find_sections(net, images):
        given = images.clone().requires_grad_()
        for tap in (section.entry, section.first, section.exit):
            module = net.get_submodule(tap.path)
            handle = module.register_forward_hook(lambda module, args, output: output.detach().requires_grad_())
            net(given).sum().backward()
            handle.remove()
            assert given.grad is None, tap


def test_taps_can_be_read_while_the_network_trains():
    net = Net(stem=conv(3, 8), one=Gated(8, 16, 1), drop=nn.Dropout2d(), two=Gated(16, 24, 2), tail=tail(24)).train()
    sections = find_sections(net, (2, 3, 16, 16))
    named = {tap: shape for s in sections for tap, shape in ((s.entry, s.entry_shape), (s.exit, s.exit_shape))}
    reading = Tapped(net, named)(torch.rand(2, 3, 16, 16))
    assert Tap("one") in named  # not the Dropout that hands the map on
    assert {tap: tuple(reading[tap].shape[1:]) for tap in named} == named


def test_oblong_images():
    sections = find_sections(create("resnet8"), (3, 64, 16))
    assert [s.size for s in sections] == [(64, 16), (32, 8), (16, 4)]
    assert [s.scale for s in sections] == [(1, 1), (1 / 2, 1 / 2), (1 / 4, 1 / 4)]


class Detaching(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).detach()


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 9), nn.ReLU(), nn.Linear(9, 10)), "0 2-D convolutions and no map"),
        (nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Flatten(2), nn.Linear(16, 8)), "1 2-D convolutions and maps of 4x4"),
        (Detaching(create("resnet8")), "No gradient leads from the output of Detaching"),
    ],
)
def test_networks_without_sections_are_refused(net, message):
    with pytest.raises(NetworkError, match=message) as error:
        find_sections(net, (3, 32, 32))
    assert "'flows' of the job" in str(error.value)
