"""FitNet hints: which layers, how they are compared, and the second stage's weight."""

import pytest
import torch
from torch import nn

import flowstill as fs
from flowstill.data.batch import Batch
from flowstill.features.pairs import pair_sections, pairs_by_hand
from flowstill.features.sections import find_sections
from flowstill.features.taps import Reading, Tapped
from flowstill.knowledge.hints import Hints, blocks, hint_loss
from flowstill.knowledge.logits import SoftLogits
from flowstill.transfer.knowledge import Setting, parse_knowledge
from flowstill.transfer.procedures import joint, two_stage
from flowstill.transfer.rules import AdaptiveClip
from flowstill.transfer.schedules import Linear
from flowstill.transfer.stages import Optimizer, Term
from oracles import hints as oracle
from support.representing_networks import draw, vgg
from support.stage_runners import kept, moved, read_teacher, stage_runner


def build(teacher, student, shape=(3, 16, 16), **options):
    pairs = pair_sections(teacher, student, shape)
    return Hints(**options).build(pairs, Setting(teacher, student, shape, 10))


def paths(taps):
    return [str(tap) for tap in taps]


@pytest.mark.parametrize(
    ("depth", "middle"), [(8, "layer2"), (14, "layer2.0"), (20, "layer2.1"), (26, "layer2.1"), (32, "layer2.2")]
)
def test_the_middle_is_the_output_of_block_half_n_of_the_second_section(depth, middle):
    """ResNet-26: the stem and 8 + 4 convolutions of blocks come before it, so it ends in the 13th."""
    with torch.device("meta"):
        loss = build(fs.create(f"resnet{depth}"), fs.create("resnet8"), (3, 32, 32))
    assert paths(loss.teacher_taps) == [middle]
    assert paths(loss.student_taps) == ["layer2"]
    assert list(loss.parameters()) == []


def test_three_hints_are_the_outputs_of_all_sections():
    with torch.device("meta"):
        loss = build(fs.create("resnet26"), fs.create("resnet8"), (3, 32, 32), layers="sections")
    assert paths(loss.teacher_taps) == paths(loss.student_taps) == ["layer1", "layer2", "layer3"]


@pytest.mark.parametrize("bn", [True, False])
def test_blocks_of_a_plain_network_are_convolutions_with_their_activations(bn):
    per = 3 if bn else 2
    for count in (1, 2, 3, 5):
        network = vgg((2, 4), (count, 8), (2, 8), bn=bn)
        section = find_sections(network, (3, 16, 16))[1]
        found = [int(tap.path) for tap, _ in blocks(network, section, (3, 16, 16))]
        start = 2 * per + 1
        assert found == [start + per * (i + 1) - 1 for i in range(count)]


def test_a_convolution_of_one_pixel_at_the_end_belongs_to_the_block_before():
    conv = lambda i, o, k: [nn.Conv2d(i, o, k, padding=k // 2), nn.ReLU()]  # noqa: E731
    head = [nn.MaxPool2d(2), *conv(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    network = nn.Sequential(*conv(3, 8, 3), *conv(8, 8, 3), *conv(8, 8, 3), *conv(8, 8, 1), *head)
    found = blocks(network, find_sections(network, (3, 16, 16))[0], (3, 16, 16))
    assert paths(tap for tap, _ in found) == ["3", "7"]


@pytest.mark.parametrize(
    ("name", "section", "expected"),
    [
        ("timm:resnet26", 2, ["layer3.0", "layer3"]),
        ("timm:resnet34", 2, [*(f"layer3.{i}" for i in range(5)), "layer3"]),
        ("timm:mobilenetv2_035", 2, ["blocks.2.0", "blocks.2.1", "blocks.2"]),
        ("timm:densenet121", 1, ["features.denseblock2"]),
    ],
)
def test_blocks_of_library_networks(name, section, expected):
    with torch.device("meta"):
        network = fs.create(name, num_classes=10)
    found = blocks(network, find_sections(network, (3, 64, 64))[section], (3, 64, 64))
    assert paths(tap for tap, _ in found) == expected


@pytest.mark.parametrize("name", ["resnet20", "timm:resnet26", "timm:densenet121", "timm:mobilenetv2_035"])
def test_blocks_have_the_reported_shapes_and_end_with_their_section(name):
    network, shape = fs.create(name, num_classes=10).eval(), (3, 64, 64)
    for section in find_sections(network, shape):
        found = blocks(network, section, shape)
        with torch.no_grad():
            reading = Tapped(network, [tap for tap, _ in found])(torch.zeros(1, *shape))
        assert [tuple(reading[tap].shape[1:]) for tap, _ in found] == [shape for _, shape in found]
        assert found[-1] == (section.exit, section.exit_shape)
        assert len({tap for tap, _ in found}) == len(found)


def test_taps_by_hand_are_used_unchanged():
    teacher, student = fs.create("resnet20"), fs.create("resnet8")
    pairs = pairs_by_hand(teacher, student, (3, 16, 16), [(("layer2.0", "layer2.2.bn1"), ("layer1", "layer2"))])
    loss = Hints().build(pairs, Setting(teacher, student, (3, 16, 16), 10))
    assert (paths(loss.teacher_taps), paths(loss.student_taps)) == (["layer2.2.bn1"], ["layer2"])


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize(
    ("shape_s", "shape_t"), [((3, 4, 4), (3, 4, 4)), ((2, 4, 4), (5, 2, 2)), ((4, 2, 3), (3, 4, 6))]
)
def test_loss_equals_the_loops(summed, shape_s, shape_t):
    teacher, student = (fs.create("resnet8", width=(2, shape[0], shape[0])) for shape in (shape_t, shape_s))
    loss = build(teacher, student, sum=summed).double()
    (regressor,) = loss.regressors
    assert isinstance(regressor, nn.Identity) == (shape_s[0] == shape_t[0])
    weights = () if shape_s[0] == shape_t[0] else (regressor.weight[:, :, 0, 0].tolist(), regressor.bias.tolist())
    guided, hint = draw(2, *shape_s), draw(2, *shape_t, seed=1)
    (tap_s,), (tap_t,) = loss.student_taps, loss.teacher_taps
    target = loss.target(Reading(guided, None, {tap_t: hint}))
    expected = oracle.hint(guided.tolist(), hint.tolist(), *(weights or (None, None)), summed=summed)
    assert float(loss.compare(Reading(guided, None, {tap_s: guided}), target).detach()) == pytest.approx(
        expected, rel=1e-10
    )


def test_three_losses_are_summed_and_equal_networks_have_zero_loss():
    torch.manual_seed(0)
    network, other = (fs.create("resnet8", width=0.5).eval() for _ in range(2))
    loss, images = build(network, network, layers="sections"), torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        reading_s, reading_t = (Tapped(net, loss.student_taps)(images) for net in (network, other))
    assert float(loss.compare(reading_s, loss.target(reading_s))) == 0.0
    expected = sum(
        float((reading_s[tap] - reading_t[tap]).square().sum()) / 3 for tap in ("layer1", "layer2", "layer3")
    )
    assert float(loss.compare(reading_s, loss.target(reading_t))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("layers", "summed"), [((1,), False), ((2,), True), ((2, 0), False), ((0, 1, 2), True)])
def test_chosen_sections_equal_the_loops(layers, summed):
    """Widths that differ in the first and the last section, from 2 to 3 and from 5 to 4 channels."""
    torch.manual_seed(0)
    student = fs.create("resnet8", width=(2, 4, 5)).double().eval()
    teacher = fs.create("resnet14", width=(3, 4, 4)).double().eval()
    loss, images = build(teacher, student, layers=layers, sum=summed).double(), draw(2, 3, 16, 16)
    names = [f"layer{number + 1}" for number in layers]
    assert paths(loss.teacher_taps) == paths(loss.student_taps) == names
    with torch.no_grad():
        reading_s, reading_t = (Tapped(net, names, until="taps")(images) for net in (student, teacher))
    expected = 0.0
    for name, regressor in zip(names, loss.regressors, strict=True):
        assert isinstance(regressor, nn.Identity) == (name == "layer2")
        weights = () if name == "layer2" else (regressor.weight[:, :, 0, 0].tolist(), regressor.bias.tolist())
        expected += oracle.hint(
            reading_s[name].tolist(), reading_t[name].tolist(), *(weights or (None, None)), summed=summed
        )
    assert float(loss.compare(reading_s, loss.target(reading_t)).detach()) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("summed", [False, True])
def test_gradients(summed):
    maps = draw(2, 3, 2, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda guided: hint_loss(guided, draw(2, 3, 2, 2), sum=summed), maps)


def test_float32_out_of_bfloat16_autocast():
    torch.manual_seed(0)
    loss = build(fs.create("resnet14"), fs.create("resnet8", width=0.5))
    (tap_s,) = loss.student_taps
    guided, hint = draw(4, 16, 8, 8).float(), draw(4, 32, 8, 8, seed=1).float()
    exact = loss.compare(Reading(guided, None, {tap_s: guided}), (hint,)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        half = loss.compare(Reading(guided, None, {tap_s: guided.bfloat16()}), (hint.bfloat16(),)).detach()
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(exact), rel=0.02)


def test_invalid_layers_are_an_error():
    with torch.device("meta"):
        pairs = pair_sections(fs.create("resnet14"), fs.create("resnet8"), (3, 32, 32))
    assert len(Hints(layers="sections").build(pairs).student_taps) == 3
    assert paths(Hints(layers=(2, 0)).build(pairs).student_taps) == ["layer3", "layer1"]
    with pytest.raises(
        fs.RecipeError, match="no section 3: the networks pair in 3 sections, numbered from 0 to 2; change 'layers'"
    ):
        Hints(layers=(0, 3)).build(pairs)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((), r"layers \(\): list at least one section"),
        ((1, 1), r"layers \(1, 1\): list at least one section, each once; or choose 'middle'"),
        ((-1,), r"layers\[0\]: expected at least 0, got -1"),
        ((1.5,), r"layers\[0\]: expected a whole number, got 1.5"),
        (1, "expected 'middle' or 'sections' or a list, got 1"),
        ("section", "Did you mean 'sections'"),
    ],
)
def test_invalid_layer_names_are_refused(layers, said):
    with pytest.raises(fs.RecipeError, match=said):
        Hints(layers=layers)


def test_a_recipe_can_choose_sections():
    assert parse_knowledge({"name": "hints", "layers": [1]}) == Hints(layers=(1,))


@pytest.mark.parametrize("layers", ["middle", "sections"])
@pytest.mark.parametrize(
    ("teacher", "student", "side"),
    [
        (lambda: fs.create("resnet14", width=0.5), lambda: fs.create("resnet8", width=0.25), 16),
        (lambda: vgg((2, 8), (4, 16)), lambda: vgg((2, 6), (2, 12)), 16),
        (
            lambda: fs.create("timm:mobilenetv2_035", num_classes=10),
            lambda: vgg((2, 8), (2, 8), (2, 6), (2, 8), (2, 8)),
            32,
        ),
    ],
)
def test_the_loss_falls_on_a_fixed_batch_and_the_regressor_moves_too(layers, teacher, student, side):
    torch.manual_seed(0)
    teacher, student = teacher().requires_grad_(False).eval(), student()
    hints = Hints(layers=layers, sum=False)  # one rate for maps of any size
    first, _ = two_stage(hints, transfer_steps=20, transfer_lr=0.02, task_steps=1, task_lr=0.1)
    runner = stage_runner(first, teacher, student, (3, side, side))
    images = torch.randn(8, 3, side, side)
    given = Batch(images, torch.arange(8), torch.arange(8), torch.zeros(8, dtype=torch.long))
    reading = read_teacher(runner, teacher, images)
    (loss,) = runner.module.losses
    before, frozen = kept(loss), kept(teacher)
    values = [float(runner.update(0, given, reading, t)["hints"]) for t in range(12)]
    assert before
    assert values[-1] < 0.9 * values[0]
    assert moved(before, loss) == set(before)
    assert not moved(frozen, teacher)


def test_regressors_move_under_a_clipping_rule():
    """They belong to the transfer, whose gradient the rule holds against the task's on the student alone."""
    torch.manual_seed(0)
    teacher, student = fs.create("resnet8").requires_grad_(False).eval(), fs.create("resnet8", width=0.5)
    (stage,) = joint("hints", steps=3, lr=0.1, rule=AdaptiveClip(), optimizer=Optimizer(weight_decay=0.0))
    runner = stage_runner(stage, teacher, student, (3, 8, 8))
    (regressor,) = runner.module.parts()["adapters"]
    before, images = kept(regressor), torch.randn(6, 3, 8, 8)
    given = Batch(images, torch.arange(6), torch.arange(6), torch.zeros(6, dtype=torch.long))
    runner.update(0, given, read_teacher(runner, teacher, images), 0)
    assert moved(before, regressor) == set(before)


@pytest.mark.parametrize(("step", "weight"), [(0, 4.0), (50, 2.5), (100, 1.0)])
def test_the_second_stage_is_ce_plus_lambda_h_with_lambda_from_4_to_1(step, weight):
    """The student's step is that on CE + lambda H(P_T, P_S) at temperature 3, with lambda 4, 2.5 and 1."""
    torch.manual_seed(0)
    teacher, student, twin = (fs.create("resnet8", width=0.25) for _ in range(3))
    twin.load_state_dict(student.state_dict())
    soft = Term(SoftLogits(temperature=3.0, divergence="cross_entropy", squared=False), Linear((4, 1)))
    (stage,) = joint(soft, steps=101, lr=0.1)
    runner = stage_runner(stage, teacher.requires_grad_(False).eval(), student, (3, 8, 8))
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6)
    reading = read_teacher(runner, teacher, images)
    runner.update(0, Batch(images, labels, torch.arange(6), torch.zeros(6, dtype=torch.long)), reading, step)

    logits = twin.train()(images)
    soft_part = -((reading.logits / 3).softmax(1) * (logits / 3).log_softmax(1)).sum(1).mean()
    (nn.functional.cross_entropy(logits, labels) + weight * soft_part).backward()
    for parameter, by_hand in zip(student.parameters(), twin.parameters(), strict=True):
        expected = by_hand.detach() - 0.1 * (by_hand.grad + 1e-4 * by_hand.detach())
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-6)
