"""Knowledge representing: groups of layers, what stands for them, and the two steps in turn, spec (e)."""

import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import flowstill as fs
from flowstill.data.batch import Batch
from flowstill.data.spec import Augment, Data
from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.engine.runner import StageRunner
from flowstill.knowledge.aggregation import (
    Aggregated,
    Aggregation,
    matching_loss,
    measures,
    transport_cost,
)  # fmt: skip
from flowstill.knowledge.base import Setting
from flowstill.knowledge.groups import find_groups, group_sizes
from flowstill.knowledge.layers import find_layers
from flowstill.recipes.schema import Job, Net, Optimizer, Recipe
from flowstill.sections import find_sections, pair_sections, pairs_by_hand
from flowstill.taps import Reading, Tapped
from flowstill.transfer.procedures import alternating
from flowstill.transfer.recoding import Recoding
from oracles import representing as oracle


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vgg(*rows):
    """Rows of (convolutions, channels), a pooling between two rows: conv, BatchNorm, ReLU in place."""
    layers, channels = [], 3
    for number, (count, width) in enumerate(rows):
        layers += [nn.MaxPool2d(2)] if number else []
        for _ in range(count):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def calibrated(network, shape, seed=0):
    """With BatchNorm statistics and scales that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.3, 0.3), (module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 2.0)):  # fmt: skip
                tensor.data.uniform_(low, high, generator=generator)
    return network.eval()


def pairing(teacher, student, shape):
    return pair_sections(teacher, student, shape), Setting(teacher, student, shape, 10)


def counts(teacher, student, shape, size=3):
    """For each section: how many convolutions the groups hold, and which of the student's layers follow them."""
    with torch.device("meta"):
        pairs, setting = pairing(
            *(fs.create(net, num_classes=10) if isinstance(net, str) else net() for net in (teacher, student)), shape
        )
    groups = find_groups(pairs, setting, size)
    sections = find_layers(setting.student, [pair.student for pair in pairs], shape)
    return [([len(g.teacher.paths) for g in groups if g.student in own], [own.index(g.student) for g in groups if g.student in own])
            for own in sections]  # fmt: skip


def test_resnet26_groups_merge_to_the_layers_of_resnet8():
    """8 convolutions in each of 3 sections: groups of 3, 3 and 2 are one too many for the two layers of a section."""
    assert counts("resnet26", "resnet8", (3, 32, 32)) == [([3, 5], [0, 1])] * 3
    assert counts("resnet26", "resnet8", (3, 32, 32), size=4) == [([4, 4], [0, 1])] * 3


def test_resnet32_groups_are_as_many_as_the_layers_of_resnet14():
    assert counts("resnet32", "resnet14", (3, 32, 32)) == [([3, 3, 3, 1], [0, 1, 2, 3])] * 3


def test_fewer_groups_than_layers_end_where_the_section_ends():
    assert counts("resnet14", "resnet20", (3, 32, 32), size=2) == [([2, 2], [2, 5])] * 3
    assert counts("resnet14", "resnet20", (3, 32, 32), size=4) == [([4], [5])] * 3


def test_vgg_like_and_timm_networks_have_groups():
    assert counts(lambda: vgg((2, 16), (4, 32), (7, 64)), lambda: vgg((2, 8), (2, 8), (3, 8)), (3, 32, 32)) == \
        [([1], [0]), ([3, 1], [0, 1]), ([3, 3, 1], [0, 1, 2])]  # fmt: skip
    # Bottlenecks, of three convolutions each.
    assert counts("timm:resnet26", "timm:resnet18", (3, 64, 64), size=4)[0] == ([4, 2], [1, 3])
    assert counts("timm:mobilenetv2_035", "timm:mobilenetv2_035", (3, 64, 64))[1] == ([3, 3], [2, 5])


@pytest.mark.parametrize("layers", range(1, 20))
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("at_most", [1, 2, 3, 5])
def test_group_sizes_equal_the_loops(layers, size, at_most):
    sizes = group_sizes(layers, size, at_most)
    assert sizes == [len(group) for group in oracle.groups(layers, size, at_most)]
    assert sum(sizes) == layers
    assert len(sizes) <= at_most


def paths(network, shape=(3, 64, 64), section=1):
    with torch.device("meta"):
        network = network() if callable(network) else fs.create(network, num_classes=10)
    sections = find_sections(network, shape)
    return [layer.paths[0] for layer in find_layers(network, sections, shape)[section]]


def test_layers_are_those_of_the_main_path_in_order():
    assert paths(lambda: fs.create("resnet14", shortcut="B"), (3, 32, 32)) == \
        [f"layer2.{block}.conv{n}" for block in (0, 1) for n in (1, 2)]  # fmt: skip
    gated = paths("timm:seresnet18")  # squeeze-and-excitation in each block, a projection beside the first
    assert gated == [f"layer2.{block}.conv{n}" for block in (0, 1) for n in (1, 2)]
    assert paths("timm:mobilenetv3_small_050", section=2)[:3] == [
        f"blocks.2.0.conv_{kind}" for kind in ("pw", "dw", "pwl")
    ]


def test_a_block_with_one_convolution_beside_a_projection():
    """Both ways pass one convolution; the main one has more weights."""

    class Block(nn.Module):
        def __init__(self, inside, outside, stride):
            super().__init__()
            self.project = nn.Conv2d(inside, outside, 1, stride)
            self.conv = nn.Conv2d(inside, outside, 3, stride, 1)
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(self.project(x) + self.conv(x))

    def make():
        return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), Block(8, 8, 1), Block(8, 16, 2), Block(16, 16, 1),
                             nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))  # fmt: skip

    assert paths(make, (3, 16, 16)) == ["3.conv", "4.conv"]


def test_what_a_layer_hands_on_is_read_after_its_activation():
    teacher = calibrated(fs.create("resnet14", width=0.25), (3, 16, 16))
    (section, *_) = find_sections(teacher, (3, 16, 16))
    layers = find_layers(teacher, [section], (3, 16, 16))[0]
    images = torch.randn(2, 3, 16, 16)
    taps = [layer.after.tap for layer in layers]
    reading = Tapped(teacher, [*taps, "layer1.0.relu1", "layer1.0", "layer1.1.relu1", "layer1.1"])(images)
    for tap, module in zip(taps, ["layer1.0.relu1", "layer1.0", "layer1.1.relu1", "layer1.1"], strict=True):
        assert torch.equal(reading[tap], reading[module])
    assert [layer.before.tap for layer in layers[1:]] == taps[:-1]


def test_layers_leave_the_network_as_it_was():
    teacher = fs.create("resnet8", width=0.25).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    random = torch.get_rng_state()
    find_layers(teacher, find_sections(teacher, (3, 16, 16)), (3, 16, 16))
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert teacher.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_section_of_functions_is_refused():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 10)
            self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
            self.act, self.out = nn.ReLU(), nn.ReLU()

        def forward(self, x):
            x = self.out(nn.functional.conv2d(self.act(self.stem(x)), self.weight, padding=1))
            return self.fc(x.mean((2, 3)))

    network = Functional()
    pairs = pairs_by_hand(network, network, (3, 8, 8), [(("act", "out"), ("act", "out"))])
    with pytest.raises(fs.NetworkError, match=r"no convolution was found on the way .* act -> out"):
        Aggregation().build(pairs, Setting(network, network, (3, 8, 8), 10))


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


def test_measures_average_one_and_none_are_of_zeros():
    assert measures(draw(5).abs()).mean() == pytest.approx(1.0)
    assert measures(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def tiny(width=(3, 4, 5), shape=(3, 8, 8), teacher="resnet14", **options):
    """A teacher of 2-3-4 channels with a student of other widths, float64, and the losses of both steps."""
    torch.manual_seed(0)
    networks = [calibrated(fs.create(name, width=widths).double(), shape, seed)
                for seed, (name, widths) in enumerate([(teacher, (2, 3, 4)), ("resnet8", width)])]  # fmt: skip
    pairs, setting = pairing(*networks, shape)
    aggregation = Aggregation(**options).build(pairs, setting).double()
    return *networks, aggregation, Aggregated().build(pairs, setting)


def read(network, loss_taps, images):
    with torch.no_grad():
        return Tapped(network, loss_taps, until="taps")(images)


@pytest.mark.parametrize("width", [(2, 3, 4), (3, 3, 3)])
@pytest.mark.parametrize("options", [{}, {"squared": True}, {"measure": "residual"}, {"layers": 1}])
def test_psi_equals_the_loops(width, options):
    """Every W~ by scalar loops: convolution with the group's stride, BatchNorm, ReLU, identity mapping; then mu and the norms."""
    teacher, _, loss, matching = tiny(width, **options)
    calibrated(loss, None, seed=7)
    images = draw(2, 3, 8, 8)
    reading = read(teacher, loss.teacher_taps, images)
    spreads, costs, features = [], [], []
    for group, layer in zip(loss.aggregate.groups, loss.aggregate.layers, strict=True):
        before, after = reading[group.teacher.before.tap], reading[group.teacher.after.tap].tolist()
        stride = before.shape[2] // len(after[0][0])
        bn = [t.tolist() for t in (layer.bn.running_mean, layer.bn.running_var, layer.bn.weight, layer.bn.bias)]
        own = [
            oracle.rectified(oracle.normalised(oracle.convolution(maps, layer.conv.weight.tolist(), stride, 1), *bn))
            for maps in before.tolist()
        ]
        features.append(own)
        mapped = (
            own
            if isinstance(layer.identity, nn.Identity)
            else [oracle.convolution(maps, layer.identity.weight.tolist(), 1, 0) for maps in own]
        )
        costs.append(oracle.cost(after, mapped, options.get("squared", False)))
        if options.get("measure") == "residual":
            spreads.append(
                oracle.deviation(
                    [
                        x - y
                        for a, b in zip(after, mapped, strict=True)
                        for x, y in zip(oracle.flat(a), oracle.flat(b), strict=True)
                    ]
                )
            )
        else:
            weights = [teacher.get_submodule(path).weight.flatten().tolist() for path in group.teacher.paths]
            spreads.append(oracle.deviation([w for row in weights for w in row]))
    assert float(loss(Reading(images), loss.target(reading)).detach()) == pytest.approx(
        oracle.psi(spreads, costs), rel=1e-9
    )
    for ours, theirs in zip(matching.target(reading), features, strict=True):
        assert ours.flatten().tolist() == pytest.approx(
            [v for maps in theirs for v in oracle.flat(maps)], rel=1e-9, abs=1e-12
        )


def test_copies_of_the_teachers_own_layers_cost_nothing():
    """c = 1: a W~ with the weights of a convolution, BatchNorm and ReLU does what they do."""
    torch.manual_seed(0)
    teacher = calibrated(vgg((2, 4), (2, 6)).double(), (3, 8, 8))
    pairs, setting = pairing(teacher, vgg((2, 4), (2, 6)).double(), (3, 8, 8))
    loss = Aggregation(layers=1).build(pairs, setting).double().eval()
    images = draw(2, 3, 8, 8)
    target = loss.target(read(teacher, loss.teacher_taps, images))
    assert float(loss(Reading(images), target).detach()) > 1
    for group, layer in zip(loss.aggregate.groups, loss.aggregate.layers, strict=True):
        number = int(group.teacher.paths[0])
        layer.conv.load_state_dict(teacher[number].state_dict())
        layer.bn.load_state_dict(teacher[number + 1].state_dict())
    cost = loss(Reading(images), target)
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
    """An unpadded teacher: its groups end in maps that a padded convolution does not give."""
    torch.manual_seed(0)
    teacher = nn.Sequential(
        *(m for i, o in ((3, 4), (4, 4), (4, 4)) for m in (nn.Conv2d(i, o, 3), nn.BatchNorm2d(o), nn.ReLU())),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10),
    ).eval()  # fmt: skip
    student = vgg((2, 5))
    pairs, setting = pairing(teacher, student, (3, 16, 16))
    loss, matching = Aggregation().build(pairs, setting), Aggregated().build(pairs, setting)
    images = torch.randn(2, 3, 16, 16)
    reading = read(teacher, loss.teacher_taps, images)
    assert float(loss(Reading(images), loss.target(reading)).detach()) > 0
    seen = Tapped(student.eval(), matching.student_taps, until="taps")(images)
    assert float(matching(seen, matching.target(reading)).detach()) > 0


def test_float32_out_of_bfloat16_autocast():
    torch.manual_seed(0)
    teacher, student = (calibrated(fs.create(name, width=0.5), (3, 16, 16)) for name in ("resnet14", "resnet8"))
    pairs, setting = pairing(teacher, student, (3, 16, 16))
    loss, matching = Aggregation().build(pairs, setting), Aggregated().build(pairs, setting)
    images = torch.randn(4, 3, 16, 16)

    def values():
        reading, own = read(teacher, loss.teacher_taps, images), read(student, matching.student_taps, images)
        return [module(own, module.target(reading)).detach() for module in (loss, matching)]

    exact = values()
    with torch.autocast("cpu", torch.bfloat16):
        half = values()
    for a, b in zip(exact, half, strict=True):
        assert b.dtype == torch.float32
        assert float(b) == pytest.approx(float(a), rel=0.03)


def test_what_cannot_be_built_is_said():
    with torch.device("meta"):
        pairs, setting = pairing(fs.create("resnet14"), fs.create("resnet8"), (3, 32, 32))
    with pytest.raises(fs.RecipeError, match="earlier update of the same stage"):
        Aggregated().build(pairs, setting)
    Aggregation().build(pairs, setting)
    assert Aggregation(measure="residual").build(pairs, setting).aggregate is setting.shared["aggregate"]
    with pytest.raises(fs.RecipeError, match="'layers: 3' in one term and of 4"):
        Aggregation(layers=4).build(pairs, setting)
    with pytest.raises(fs.RecipeError, match="needs a teacher"):
        Aggregation().build(())


def batch(shape=(3, 16, 16), seed=0, count=16):
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    return Batch(images, torch.arange(count) % 10, torch.arange(count), torch.zeros(count, dtype=torch.long))


def start(stage, teacher=None, student=None, shape=(3, 16, 16)):
    torch.manual_seed(0)
    teacher = (teacher or fs.create("resnet14", width=0.25)).requires_grad_(False).eval()
    student = student or fs.create("resnet8", width=(3, 8, 12))
    pairs, setting = pairing(teacher, student, shape)
    return StageRunner(make_fabric("cpu", 1, Precision()), student, stage, pairs, setting), teacher, student


def step(runner, teacher, number, given, t=0):
    with torch.no_grad():
        taps, logits = runner.teacher_needs([0, 1])
        reading = Tapped(teacher, taps, until="logits" if logits else "taps")(given.images)
    return runner.update(number, given, reading, t)


def kept(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def moved(before, module):
    return {name for name, tensor in module.state_dict().items() if not torch.equal(before[name], tensor)}


def test_step_a_moves_student_and_w_and_step_b_the_student_alone():
    (stage,) = alternating(steps=4, lr=0.05, match_lr=0.05)
    runner, teacher, student = start(stage)
    aggregate = runner.learner.losses[1].aggregate
    its, own, w = kept(teacher), kept(student), kept(aggregate)
    losses = step(runner, teacher, 0, batch())
    assert set(losses) == {"labels", "aggregation"}
    assert moved(its, teacher) == set()
    assert moved(own, student) >= {"conv1.weight", "layer3.0.conv2.weight", "fc.weight", "bn1.running_mean"}
    assert moved(w, aggregate) >= {
        "layers.0.conv.weight",
        "layers.0.bn.running_mean",
        "layers.0.identity.weight",
        "layers.5.bn.bias",
    }
    own, w = kept(student), kept(aggregate)
    losses = step(runner, teacher, 1, batch())
    assert set(losses) == {"aggregated"}
    assert moved(its, teacher) == set()
    assert moved(w, aggregate) == set()
    after = moved(own, student)
    assert "conv1.weight" in after
    assert not any(name.startswith("fc") or "running" in name or "tracked" in name for name in after)


def test_step_b_follows_w_as_step_a_left_it():
    """The target is W~'s features after A's step, normalised by the batch, and the loss is of a fresh forward."""
    (stage,) = alternating(steps=4, lr=0.05, match_lr=0.0)
    runner, teacher, student = start(stage)
    given = batch()
    step(runner, teacher, 0, given)
    (value,) = step(runner, teacher, 1, given).values()
    matching = runner.learner.losses[2]
    taps = [group.teacher.before.tap for group in matching._aggregate[0].groups]
    inputs = read(teacher, taps, given.images)
    twin = fs.create("resnet8", width=(3, 8, 12)).train()
    twin.load_state_dict(student.state_dict())
    own = read(twin, matching.student_taps, given.images)
    expected = 0.0
    for group, layer in zip(matching._aggregate[0].groups, matching._aggregate[0].layers, strict=True):
        maps = layer.conv(inputs[group.teacher.before.tap])
        mean, variance = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), keepdim=True, correction=0)
        maps = (
            (maps - mean) / (variance + 1e-5).sqrt() * layer.bn.weight.view(-1, 1, 1) + layer.bn.bias.view(-1, 1, 1)
        ).relu()
        expected += float((maps - own[group.student.after.tap]).square().mean().detach())
    assert float(value) == pytest.approx(expected, rel=1e-4)


def test_a_gamma_of_zero_leaves_w_where_it_is():
    for gamma, expected in ((0.0, set()), (1.0, None)):
        (stage,) = alternating(steps=4, lr=0.05, match_lr=0.05, gamma=gamma, optimizer=Optimizer(weight_decay=0.0))
        runner, teacher, _ = start(stage)
        aggregate = runner.learner.losses[1].aggregate
        before = {name: p.detach().clone() for name, p in aggregate.named_parameters()}
        step(runner, teacher, 0, batch())
        changed = {name for name, p in aggregate.named_parameters() if not torch.equal(before[name], p)}
        assert changed == (set(before) if expected is None else expected)


def test_gamma_and_w_do_not_reach_the_student_in_step_a():
    """Eq. 9's second term is of the teacher and W~ alone."""
    students = []
    for gamma in (0.0, 3.0):
        (stage,) = alternating(steps=4, lr=0.05, match_lr=0.05, gamma=gamma)
        runner, teacher, student = start(stage)
        step(runner, teacher, 0, batch())
        students.append(kept(student))
    assert all(torch.equal(students[0][name], students[1][name]) for name in students[0])


def test_without_w_or_recoding_the_student_goes_elsewhere():
    ways = {}
    for name, options in {"kr": {}, "dense": {"recode": None}, "soft": {"recode": Recoding("recode_soft")},
                          "penalty": {"recode": Recoding("double_backward", 1e-4)}}.items():  # fmt: skip
        (stage,) = alternating(steps=4, lr=0.05, match_lr=0.05, **options)
        runner, teacher, student = start(stage)
        step(runner, teacher, 0, batch())
        ways["without W~"] = kept(student)
        step(runner, teacher, 1, batch())
        ways[name] = kept(student)
    weights = [way["layer2.0.conv1.weight"] for way in ways.values()]
    assert all(torch.isfinite(w).all() for w in weights)
    assert not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def test_step_b_passes_only_what_lies_above_the_threshold():
    (stage,) = alternating(steps=4, lr=0.05, match_lr=0.05, optimizer=Optimizer(momentum=0.0, weight_decay=0.0))
    runner, teacher, student = start(stage)
    own = kept(student)
    step(runner, teacher, 1, batch())
    weight = "layer3.0.conv1.weight"
    still = float((student.state_dict()[weight] == own[weight]).float().mean())
    assert 0.3 < still < 0.91


@pytest.mark.parametrize(("teacher", "student", "side"), [
    (lambda: fs.create("resnet20", width=0.5), lambda: fs.create("resnet8", width=0.5), 16),
    (lambda: vgg((2, 8), (4, 16)), lambda: vgg((2, 6), (2, 12)), 16),
    (lambda: fs.create("timm:mobilenetv2_035", num_classes=10), lambda: vgg((2, 8), (2, 8), (2, 8), (2, 8), (2, 8)), 32),
])  # fmt: skip
def test_each_loss_falls_on_a_fixed_batch_for_any_sectioned_network(teacher, student, side):
    torch.manual_seed(1)
    teacher, student, given = teacher().train(), student(), batch((3, side, side), count=8)
    with torch.no_grad():
        for _ in range(20):
            teacher(given.images)  # BatchNorm's statistics are of a network that has seen images
    (stage,) = alternating(steps=30, lr=0.05, match_lr=0.02, gamma=1.0, recode=None)
    runner, teacher, _ = start(stage, teacher, student, (3, side, side))
    for number, name in enumerate(["aggregation", "aggregated"]):
        values = [float(step(runner, teacher, number, given, t)[name]) for t in range(8)]
        assert all(torch.isfinite(torch.tensor(values)))
        assert values[-1] < 0.9 * values[0]


def test_the_match_falls_where_w_stands_still():
    (stage,) = alternating(steps=30, lr=0.05, match_lr=0.1, recode=Recoding())
    runner, teacher, _ = start(stage)
    values = [float(step(runner, teacher, 1, batch(), t)["aggregated"]) for t in range(25)]
    assert values[-1] < 0.7 * values[0]


def test_posterior_knowledge_joins_step_a():
    (stage,) = alternating(steps=4, lr=0.05, match_lr=0.05, posterior=("soft_logits", "nst"))
    runner, teacher, _ = start(stage)
    assert set(step(runner, teacher, 0, batch())) == {"labels", "soft_logits", "nst", "aggregation"}


def test_stage_is_that_of_the_paper():
    (stage,) = alternating(steps=64_000, lr=0.1, match_lr=0.01)
    (cycle,) = stage.cycle
    assert [update.player for update in cycle] == ["aggregate", "student"]
    assert [update.update_batchnorm for update in cycle] == [True, False]
    assert stage.players["aggregate"].modules == ("student", "adapters", "aggregate")
    assert (
        stage.players["aggregate"].optimizer
        == stage.players["student"].optimizer
        == Optimizer("sgd", 0.9, weight_decay=1e-5)
    )
    assert stage.players["aggregate"].recode is None
    assert stage.players["student"].recode == Recoding()


NET = Net("resnet8", {"width": 0.5})
PLAIN = {"device": "cpu", "precision": "32", "progress": False}


def recipe(teacher):
    stages = alternating(steps=6, lr=0.05, match_lr=0.01, recode=Recoding(lr=0.3))
    student = Net("resnet8", {"width": [5, 10, 20]})
    return Recipe("kr", Data("digits", batch=32, augment=Augment(shift=1)),
                  {"teacher": Job(Net("resnet14", {"width": 0.5}), weights=str(teacher)), "student": Job(student, stages, teacher="teacher")})  # fmt: skip


def test_a_run_resumes_bit_for_bit(tmp_path):
    """W~, both momenta, thresholds and statistics are in the saved state; the run works from a recipe with filters reduced."""
    from flowstill.nets import save_weights

    torch.manual_seed(0)
    save_weights(fs.create("resnet14", num_classes=10, in_channels=1, width=0.5), tmp_path / "teacher.safetensors")
    given = recipe(tmp_path / "teacher.safetensors")
    whole = fs.train(given, tmp_path / "whole", **PLAIN)

    def interrupt(job, stage, steps):
        if steps == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fs.train(given, tmp_path / "part", on_step=interrupt, **PLAIN)
    again = fs.train(given, tmp_path / "part", resume=True, **PLAIN)
    one, other = (load_file(run.path / "student.safetensors") for run in (whole, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert set(one) == set(fs.create("resnet8", num_classes=10, in_channels=1, width=(5, 10, 20)).state_dict())
