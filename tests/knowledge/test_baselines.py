"""Soft logits, attention transfer and NST against naive loops."""

import math

import pytest
import torch
from torch.autograd import gradcheck

import flowstill as fs
from flowstill.errors import ShapeError
from flowstill.features.taps import Reading, Tapped
from flowstill.knowledge.attention import attention_loss
from flowstill.knowledge.logits import SoftLogits, soft_logits_loss
from flowstill.knowledge.nst import NST, nst_loss
from oracles import baselines as oracle


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("divergence", ["kl", "cross_entropy"])
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 3.0, 4.0])
def test_soft_logits_equal_the_loops(divergence, squared, temperature):
    student, teacher = draw(5, 7), draw(5, 7, seed=1)
    expected = oracle.soft_logits(student.tolist(), teacher.tolist(), temperature, divergence, squared)
    assert float(soft_logits_loss(student, teacher, temperature, divergence, squared)) == pytest.approx(
        expected, rel=1e-12
    )


def test_equal_predictions_have_zero_loss_and_the_soft_part_is_the_entropy():
    logits = draw(4, 6)
    assert float(soft_logits_loss(logits, logits)) == pytest.approx(0, abs=1e-15)
    entropy = torch.distributions.Categorical(logits=logits / 3).entropy().mean()
    assert float(soft_logits_loss(logits, logits, 3.0, "cross_entropy", False)) == pytest.approx(
        float(entropy), rel=1e-12
    )


@pytest.mark.parametrize("masked", [False, True], ids=["teacher", "both"])
@pytest.mark.parametrize("divergence", ["kl", "cross_entropy"])
def test_a_class_that_the_teacher_rules_out_does_not_count(divergence, masked):
    """Against the formula over the other classes: 0 log 0 = 0. The gradient is (P_S - P_T) / temperature."""
    student = torch.tensor([[0.5, 0.1, -math.inf if masked else 3.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[1.0, 2.0, -math.inf]], dtype=torch.float64)
    p_s, p_t = ([math.exp(z / 2) for z in logits[0].tolist()] for logits in (student, teacher))
    p_s, p_t = ([p / sum(row) for p in row] for row in (p_s, p_t))
    expected = sum(
        t * ((math.log(t) if divergence == "kl" else 0) - math.log(s)) for s, t in list(zip(p_s, p_t, strict=True))[:2]
    )
    loss = soft_logits_loss(student, teacher, 2.0, divergence, squared=False)
    assert loss.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient[0].tolist() == pytest.approx([(s - t) / 2 for s, t in zip(p_s, p_t, strict=True)])


def test_the_high_temperature_limit_matches_centred_logits():
    student, teacher = draw(1, 6).requires_grad_(), draw(1, 6, seed=1)
    (gradient,) = torch.autograd.grad(soft_logits_loss(student, teacher, 1e6), student)
    expected = ((student - student.mean()) - (teacher - teacher.mean())) / 6
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-3, atol=1e-5)


def test_kl_and_cross_entropy_have_one_gradient():
    student, teacher = draw(3, 5).requires_grad_(), draw(3, 5, seed=1)
    gradients = [
        torch.autograd.grad(soft_logits_loss(student, teacher, 3.0, kind), student)[0]
        for kind in ("kl", "cross_entropy")
    ]
    torch.testing.assert_close(*gradients)


def test_other_classes_are_refused():
    loss = SoftLogits().build(())
    with pytest.raises(ShapeError, match="teacher gives 7 and the student 5"):
        loss.compare(Reading(torch.empty(0), draw(2, 5)), draw(2, 7))


@pytest.mark.parametrize(("function", "naive"), [(attention_loss, oracle.attention), (nst_loss, oracle.nst)])
@pytest.mark.parametrize(
    ("shape_s", "shape_t"), [((3, 4, 4), (3, 4, 4)), ((2, 4, 6), (5, 2, 3)), ((9, 2, 2), (4, 4, 4))]
)
def test_map_losses_equal_the_loops(function, naive, shape_s, shape_t):
    student, teacher = draw(2, *shape_s), draw(2, *shape_t, seed=1)
    assert float(function(student, teacher)) == pytest.approx(naive(student.tolist(), teacher.tolist()), rel=1e-10)


@pytest.mark.parametrize("function", [attention_loss, nst_loss])
def test_map_losses_gradients(function):
    assert gradcheck(lambda maps: function(maps, draw(2, 3, 4, 4, seed=1)), draw(2, 5, 4, 4).requires_grad_())


@pytest.mark.parametrize("function", [attention_loss, nst_loss])
def test_equal_or_permuted_channels_have_zero_loss(function):
    maps = draw(2, 6, 3, 3)
    assert float(function(maps, maps)) == pytest.approx(0, abs=1e-14)
    assert float(function(maps[:, torch.tensor([3, 0, 5, 1, 2, 4])], maps)) == pytest.approx(0, abs=1e-14)
    assert float(function(maps, draw(2, 6, 3, 3, seed=1))) > 1e-3


@pytest.mark.parametrize("function", [attention_loss, nst_loss])
def test_dead_maps_have_finite_gradients(function):
    maps = torch.zeros(2, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(maps, draw(2, 3, 4, 4).float()), maps)
    assert torch.isfinite(gradient).all()


def test_both_forms_of_mmd_agree():
    """Few positions take the Gram matrices over positions, many those over channels: here by padding with zeros."""
    student, teacher = draw(2, 12, 2, 2), draw(2, 12, 2, 2, seed=1)
    padded = [torch.nn.functional.pad(maps, (0, 3, 0, 3)) for maps in (student, teacher)]
    assert padded[0][0, 0].numel() > 12 > student[0, 0].numel()
    assert float(nst_loss(student, teacher)) == pytest.approx(float(nst_loss(*padded)), rel=1e-10)


@pytest.mark.parametrize("function", [attention_loss, nst_loss])
def test_float32_out_of_bfloat16_autocast(function):
    student, teacher = draw(4, 8, 6, 6), draw(4, 8, 6, 6, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = function(student.bfloat16(), teacher.bfloat16())
    assert loss.dtype == torch.float32
    assert math.isclose(float(loss), float(function(student, teacher)), rel_tol=0.05)


def nst_pair(student_width, **options):
    """NST between two small networks, and the readings of both."""
    torch.manual_seed(0)
    networks = [
        fs.create(name, width=width).double().eval()
        for name, width in (("resnet14", (2, 3, 4)), ("resnet8", student_width))
    ]
    loss = NST(**options).build(fs.pair_sections(*networks, (3, 8, 8)))
    with torch.no_grad():
        readings = [Tapped(net, ("layer1", "layer2", "layer3"), until="taps")(draw(2, 3, 8, 8)) for net in networks]
    return loss, *readings


@pytest.mark.parametrize("strength", [1.0, 7.5, 50.0])
@pytest.mark.parametrize(("sections", "names"), [("last", ["layer3"]), ("all", ["layer1", "layer2", "layer3"])])
@pytest.mark.parametrize("width", [(2, 3, 4), (3, 5, 9)])
def test_nst_of_the_chosen_sections_equals_the_loops(sections, names, strength, width):
    loss, reading_t, reading_s = nst_pair(width, sections=sections, strength=strength)
    assert [str(tap) for tap in loss.teacher_taps] == [str(tap) for tap in loss.student_taps] == names
    expected = strength / 2 * sum(oracle.nst(reading_s[name].tolist(), reading_t[name].tolist()) for name in names)
    assert float(loss.compare(reading_s, loss.target(reading_t))) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("sections", ["last", "all"])
def test_nst_of_a_network_with_itself_is_zero_in_any_order_of_channels(sections):
    loss, reading_t, _ = nst_pair((2, 3, 4), sections=sections)
    orders = {"layer1": [1, 0], "layer2": [2, 0, 1], "layer3": [3, 1, 0, 2]}
    permuted = Reading(reading_t.images, None, {tap: reading_t[tap][:, orders[str(tap)]] for tap in loss.student_taps})
    assert float(loss.compare(reading_t, loss.target(reading_t))) == pytest.approx(0, abs=1e-14)
    assert float(loss.compare(permuted, loss.target(reading_t))) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e4, 1e8])
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 12, 2, 2)])
def test_nst_does_not_depend_on_the_maps_scale(shape, scale):
    """Patterns are of unit length, however large or small the maps are in float32."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.rand(shape, generator=generator) for _ in range(2))
    expected = oracle.nst(student.double().tolist(), teacher.double().tolist())
    maps = (scale * student).requires_grad_()
    value = nst_loss(maps, scale * teacher)
    value.backward()
    assert float(value.detach()) == pytest.approx(expected, rel=1e-4)
    plain = student.clone().requires_grad_()
    nst_loss(plain, teacher).backward()
    torch.testing.assert_close(scale * maps.grad, plain.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["normal", "rectified", "sparse"])
def test_nst_is_at_least_zero_on_many_random_maps(kind):
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        side, shape_s, shape_t = (int(torch.randint(1, high, (), generator=generator)) for high in (6, 12, 12))
        student, teacher = (
            torch.randn(2, channels, side, side, generator=generator, dtype=torch.float64)
            for channels in (shape_s, shape_t)
        )
        if kind != "normal":
            student, teacher = student.relu(), teacher.relu()
        if kind == "sparse":
            student = torch.where(torch.rand(student.shape, generator=generator) < 0.2, student, 0.0)
        value = float(nst_loss(student, teacher))
        assert value >= -1e-15  # that is 0 up to rounding, for maps of one pixel
        assert value == pytest.approx(oracle.nst(student.tolist(), teacher.tolist()), rel=1e-9, abs=1e-14)
