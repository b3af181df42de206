"""The layers that represent groups of the teacher's, and their losses."""

import pytest
import torch
from torch import nn

import flowstill as fs
from flowstill.features.taps import Reading, Tapped
from flowstill.knowledge.aggregation import (
    Aggregated,
    Aggregation,
    matching_loss,
    measures,
    transport_cost,
)
from oracles import representing as oracle
from support.representing_networks import calibrated, draw, pairing, psi_by_loops, read, vgg


@pytest.mark.parametrize("squared", [False, True])
def test_cost_and_matching_equal_the_loops(squared):
    teacher, aggregated = draw(3, 4, 5, 2), draw(3, 4, 5, 2, seed=1)
    expected = oracle.cost(teacher.tolist(), aggregated.tolist(), squared)
    assert float(transport_cost(teacher, aggregated, squared)) == pytest.approx(expected, rel=1e-12)
    student, layers = [draw(2, 3, 4, 4), draw(2, 1, 2, 2, seed=2)], [draw(2, 3, 4, 4, seed=3), draw(2, 1, 2, 2, seed=4)]
    expected = oracle.matching([s.tolist() for s in student], [a.tolist() for a in layers])
    assert float(matching_loss(student, layers)) == pytest.approx(expected, rel=1e-12)


def test_cost_has_a_gradient_of_zero_where_nothing_differs():
    maps = draw(2, 3, 4, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(transport_cost(maps.detach(), maps), maps)
    assert not gradient.any()


def test_measures_average_one_and_ignore_zeros():
    assert measures(draw(5).abs()).mean() == pytest.approx(1.0)
    assert measures(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def tiny(width=(3, 4, 5), shape=(3, 8, 8), teacher="resnet14", **options):
    """A teacher of 2-3-4 channels with a student of other widths, float64, and the losses of both steps."""
    torch.manual_seed(0)
    networks = [
        calibrated(fs.create(name, width=widths).double(), shape, seed)
        for seed, (name, widths) in enumerate([(teacher, (2, 3, 4)), ("resnet8", width)])
    ]
    pairs, setting = pairing(*networks, shape)
    aggregation = Aggregation(**options).build(pairs, setting).double()
    return *networks, aggregation, Aggregated().build(pairs, setting)


@pytest.mark.parametrize("width", [(2, 3, 4), (3, 3, 3)])
@pytest.mark.parametrize("options", [{}, {"squared": True}, {"measure": "residual"}, {"layers": 1}])
def test_psi_equals_the_loops(width, options):
    teacher, _, loss, matching = tiny(width, **options)
    calibrated(loss, None, seed=7)
    images = draw(2, 3, 8, 8)
    reading = read(teacher, loss.teacher_taps, images)
    given = {name: value for name, value in options.items() if name != "layers"}
    expected, features = psi_by_loops(teacher, loss, reading, **given)
    assert float(loss.compare(Reading(images), loss.target(reading)).detach()) == pytest.approx(expected, rel=1e-9)
    for computed, by_loops in zip(matching.target(reading), features, strict=True):
        assert computed.flatten().tolist() == pytest.approx(
            [v for maps in by_loops for v in oracle.flat(maps)], rel=1e-9, abs=1e-12
        )


def test_initial_weights_have_the_requested_spread():
    torch.manual_seed(0)
    pairs, setting = pairing(fs.create("resnet14"), fs.create("resnet8"), (3, 32, 32))
    for layer in Aggregation(std=0.5).build(pairs, setting).aggregate.layers:
        weight = layer.conv.weight.detach()
        assert float(weight.std()) == pytest.approx(0.5, rel=5 / (2 * weight.numel()) ** 0.5)  # five standard errors
        assert float(weight.mean().abs()) < 5 * 0.5 / weight.numel() ** 0.5


def test_copies_of_the_teachers_own_layers_cost_nothing():
    """c = 1: a W~ with the weights of a convolution, BatchNorm and ReLU does what they do."""
    torch.manual_seed(0)
    teacher = calibrated(vgg((2, 4), (2, 6)).double(), (3, 8, 8))
    pairs, setting = pairing(teacher, vgg((2, 4), (2, 6)).double(), (3, 8, 8))
    loss = Aggregation(layers=1).build(pairs, setting).double().eval()
    images = draw(2, 3, 8, 8)
    target = loss.target(read(teacher, loss.teacher_taps, images))
    assert float(loss.compare(Reading(images), target).detach()) > 1
    for group, layer in zip(loss.aggregate.groups, loss.aggregate.layers, strict=True):
        number = int(group.teacher.paths[0])
        layer.conv.load_state_dict(teacher[number].state_dict())
        layer.bn.load_state_dict(teacher[number + 1].state_dict())
    cost = loss.compare(Reading(images), target)
    assert float(cost.detach()) == pytest.approx(0, abs=1e-12)
    cost.backward()
    assert all(torch.isfinite(p.grad).all() for p in loss.parameters())


def test_the_first_layer_of_a_residual_block_is_copied_exactly():
    torch.manual_seed(0)
    teacher = calibrated(fs.create("resnet8", width=0.25).double(), (3, 8, 8))
    pairs, setting = pairing(teacher, fs.create("resnet8", width=0.25).double(), (3, 8, 8))
    loss = Aggregation(layers=1).build(pairs, setting).double().eval()
    for layer, section in zip(loss.aggregate.layers[::2], ("layer1", "layer2", "layer3"), strict=True):
        block = teacher.get_submodule(f"{section}.0")
        layer.conv.load_state_dict(block.conv1.state_dict())
        layer.bn.load_state_dict(block.bn1.state_dict())
    images = draw(2, 3, 8, 8)
    reading = read(teacher, loss.teacher_taps, images)
    for group, layer in list(zip(loss.aggregate.groups, loss.aggregate.layers, strict=True))[::2]:
        torch.testing.assert_close(layer(reading[group.teacher.before.tap]), reading[group.teacher.after.tap])


def test_identity_mapping_begins_as_the_identity_where_the_widths_overlap():
    _, _, loss, _ = tiny((3, 3, 3))
    narrow, equal, wide = loss.aggregate.layers[5], loss.aggregate.layers[3], loss.aggregate.layers[1]
    assert isinstance(equal.identity, nn.Identity)
    maps = draw(1, 3, 2, 2)
    out = narrow.identity(maps)
    assert torch.equal(out[:, :3], maps)
    assert not out[:, 3:].any()
    assert torch.equal(wide.identity(maps), maps[:, :2])


def test_w_has_the_students_width_and_no_relu_behind_a_linear_bottleneck():
    with torch.device("meta"):
        pairs, setting = pairing(*(fs.create(f"timm:mobilenetv2_0{n}", num_classes=10) for n in (50, 35)), (3, 64, 64))
    loss = Aggregation().build(pairs, setting)
    by_end = {
        str(group.teacher.after.tap): layer
        for group, layer in zip(loss.aggregate.groups, loss.aggregate.layers, strict=True)
    }
    assert isinstance(by_end["blocks.1"].relu, nn.Identity)  # the end of an inverted residual block
    for group, layer in zip(loss.aggregate.groups, loss.aggregate.layers, strict=True):
        assert layer.conv.out_channels == group.student.after.shape[0]
        assert isinstance(layer.relu, nn.Identity) == group.teacher.after.signed
    with torch.device("meta"):
        pairs, setting = pairing(fs.create("resnet14"), fs.create("resnet8"), (3, 32, 32))
    assert all(isinstance(layer.relu, nn.ReLU) for layer in Aggregation().build(pairs, setting).aggregate.layers)


def test_maps_of_other_sizes_are_pooled():
    """An unpadded teacher: its groups end in maps that a padded convolution does not produce."""
    torch.manual_seed(0)
    teacher = nn.Sequential(
        *(m for i, o in ((3, 4), (4, 4), (4, 4)) for m in (nn.Conv2d(i, o, 3), nn.BatchNorm2d(o), nn.ReLU())),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    ).eval()
    student = vgg((2, 5))
    pairs, setting = pairing(teacher, student, (3, 16, 16))
    loss, matching = Aggregation().build(pairs, setting), Aggregated().build(pairs, setting)
    images = torch.randn(2, 3, 16, 16)
    reading = read(teacher, loss.teacher_taps, images)
    assert float(loss.compare(Reading(images), loss.target(reading)).detach()) > 0
    seen = Tapped(student.eval(), matching.student_taps, until="taps")(images)
    assert float(matching.compare(seen, matching.target(reading)).detach()) > 0


def test_float32_out_of_bfloat16_autocast():
    torch.manual_seed(0)
    teacher, student = (calibrated(fs.create(name, width=0.5), (3, 16, 16)) for name in ("resnet14", "resnet8"))
    pairs, setting = pairing(teacher, student, (3, 16, 16))
    loss, matching = Aggregation().build(pairs, setting), Aggregated().build(pairs, setting)
    images = torch.randn(4, 3, 16, 16)

    def values():
        reading, reading_s = read(teacher, loss.teacher_taps, images), read(student, matching.student_taps, images)
        return [module.compare(reading_s, module.target(reading)).detach() for module in (loss, matching)]

    exact = values()
    with torch.autocast("cpu", torch.bfloat16):
        half = values()
    for a, b in zip(exact, half, strict=True):
        assert b.dtype == torch.float32
        assert float(b) == pytest.approx(float(a), rel=0.03)


def test_invalid_layers_are_an_error():
    with torch.device("meta"):
        pairs, setting = pairing(fs.create("resnet14"), fs.create("resnet8"), (3, 32, 32))
    with pytest.raises(fs.RecipeError, match="earlier update of the same stage"):
        Aggregated().build(pairs, setting)
    Aggregation().build(pairs, setting)
    assert Aggregation(measure="residual").build(pairs, setting).aggregate is setting.shared["aggregate"]
    with pytest.raises(fs.RecipeError, match="'layers: 3' in one term and 4 in another"):
        Aggregation(layers=4).build(pairs, setting)
    with pytest.raises(fs.RecipeError, match=r"'std: None' in one term and 2[.]0 in another"):
        Aggregation(std=2).build(pairs, setting)
