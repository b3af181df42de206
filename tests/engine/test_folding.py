"""BatchNorm folded into convolutions: the same maps, or the unchanged network."""

import pytest
import torch
from torch import Tensor, nn

import flowstill as fs
from flowstill.engine.folding import FoldedNetwork
from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.engine.teacher import Teacher
from flowstill.features.pairs import pair_sections
from flowstill.features.taps import Tap, Tapped
from flowstill.knowledge.fsp import FSP
from support.representing_networks import calibrated

SHAPE = (3, 32, 32)


def network(name, **options):
    """With statistics and affine numbers that are not those of a fresh BatchNorm."""
    torch.manual_seed(0)
    return calibrated(fs.create(name, num_classes=10, **options), SHAPE).eval()


def norms(module):
    return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("resnet14", ["relu", "layer1", "layer2:input", "layer3"]),
        ("torchvision:resnet18", ["layer1", "layer4"]),
        ("torchvision:mobilenet_v2", ["features.3", "features.18"]),
        ("mobilenet-student", []),
    ],
)
def test_a_folded_network_computes_the_same(name, taps):
    plain = network(name)
    before = {key: tensor.clone() for key, tensor in plain.state_dict().items()}
    taps = [Tap.parse(tap) for tap in taps]
    twin = FoldedNetwork(plain).reader(taps, SHAPE)
    assert norms(plain) > 0 == norms(twin)
    images = torch.randn(3, *SHAPE)
    with torch.no_grad():
        ours, expected = Tapped(twin, taps)(images), Tapped(plain, taps)(images)
    torch.testing.assert_close(ours.logits, expected.logits, rtol=1e-3, atol=1e-4)
    for tap in taps:
        torch.testing.assert_close(ours[tap], expected[tap], rtol=1e-3, atol=1e-4)
    assert all(torch.equal(tensor, before[key]) for key, tensor in plain.state_dict().items())


@pytest.mark.parametrize(
    ("tap", "stays"), [("conv1", True), ("bn1:input", True), ("bn1", False), ("layer1.0.conv1", True)]
)
def test_a_tapped_batchnorm_is_not_folded(tap, stays):
    plain = network("resnet8")
    tap = Tap.parse(tap)
    twin = FoldedNetwork(plain).reader([tap], SHAPE)
    assert (twin is plain) == stays
    images = torch.randn(2, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(
            Tapped(twin, [tap])(images)[tap], Tapped(plain, [tap])(images)[tap], rtol=1e-3, atol=1e-4
        )


class Net(nn.Module):
    """A convolution and a BatchNorm, used in a way that each test says."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.BatchNorm2d(10)
        self.relu = nn.ReLU(inplace=True)


class OutsideModules(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (self.norm(x) + x.sin()).mean((2, 3))


class TwoNorms(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (self.norm(x) + self.other(x)).mean((2, 3))


class Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(self.conv(x)) + self.norm(self.conv(2 * x))).mean((2, 3))


class Overwritten(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).relu_()).mean((2, 3))


class Between(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x) ** 2).mean((2, 3))


@pytest.mark.parametrize("kind", [OutsideModules, TwoNorms, Twice, Overwritten, Between])
def test_unfoldable_networks_are_left_unchanged(kind):
    torch.manual_seed(0)
    plain = calibrated(kind(), SHAPE).eval()
    assert FoldedNetwork(plain).reader([], SHAPE) is plain


class Remembers(Net):
    """A hook bound to the network itself, as no copy's is."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = {}
        self.relu.register_forward_hook(lambda module, inputs, output: self.kept.update(gate=output.mean((0, 2, 3))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        return (x * self.kept["gate"][:, None, None]).mean((2, 3))


class ByCount(Net):
    """Another way for many images than for few."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (self.norm(x) if len(x) < 8 else x).mean((2, 3))


@pytest.mark.parametrize("kind", [Remembers, ByCount])
def test_agreement_on_the_images_of_the_copy_alone_is_not_enough(kind):
    torch.manual_seed(0)
    plain = calibrated(kind(), SHAPE).eval()
    assert FoldedNetwork(plain).reader([], SHAPE) is plain


def test_a_network_that_cannot_be_copied_is_read_unfolded():
    plain = calibrated(nn.Sequential(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10)), SHAPE).eval()
    plain.__deepcopy__ = lambda memo: 1 / 0
    assert FoldedNetwork(plain).reader([Tap("1")], SHAPE) is plain


def test_a_head_that_rejects_the_images_does_not_matter():
    plain = calibrated(nn.Sequential(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.Linear(7, 2)), SHAPE).eval()
    assert FoldedNetwork(plain).reader([Tap("1")], SHAPE, "taps") is plain


def test_one_twin_serves_all_readings():
    plain = network("resnet14")
    folding = FoldedNetwork(plain)
    twins = {folding.reader([Tap(tap)], SHAPE, "taps") for tap in ("layer1", "layer2", "bn1")}
    assert len(twins | {folding.reader([], SHAPE)}) == 1
    assert folding.reader([Tap("conv1")], SHAPE) is plain
    assert plain not in twins


def test_random_numbers_and_statistics_are_unchanged():
    class Drops(Net):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.norm(self.conv(x)), 0.5, training=True).mean((2, 3))

    torch.manual_seed(0)
    plain = calibrated(Drops(), SHAPE).eval()
    for trains in (False, True):
        plain.norm.training = trains
        state, before = torch.get_rng_state(), {key: value.clone() for key, value in plain.state_dict().items()}
        FoldedNetwork(plain).reader([], SHAPE)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("what", ["training", "hook", "no statistics", "compiled", "parametrized"])
def test_modules_with_custom_behaviour_are_left_unchanged(what):
    plain = nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10, track_running_stats=what != "no statistics"), nn.Flatten()
    )
    plain.eval()
    if what == "training":
        plain[1].train()
    elif what == "hook":
        plain[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    elif what == "compiled":
        plain = torch.compile(plain, backend="eager")
    elif what == "parametrized":
        torch.nn.utils.parametrizations.weight_norm(plain[0])
    assert FoldedNetwork(plain).reader([], SHAPE) is plain


def test_half_precision_networks_are_folded_in_their_own_type():
    plain = network("resnet8").bfloat16()
    twin = FoldedNetwork(plain).reader([Tap("layer3")], SHAPE)
    assert norms(twin) == 0
    assert {p.dtype for p in twin.parameters()} == {torch.bfloat16}


def test_a_teacher_reads_its_folded_twin_and_stays():
    plain = network("resnet14")
    loss = FSP().build(pair_sections(plain, network("resnet8"), SHAPE))
    teacher = Teacher(make_fabric("cpu", 1, Precision()), plain)
    images = torch.randn(4, *SHAPE)
    reading = teacher.read(images, [loss])
    assert teacher.network is plain
    assert norms(plain) == 13
    with torch.no_grad():
        expected = Tapped(plain, loss.teacher_taps, until="taps")(images)
    for tap in loss.teacher_taps:
        torch.testing.assert_close(reading[tap], expected[tap], rtol=1e-3, atol=1e-4)
