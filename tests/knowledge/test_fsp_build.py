"""FSP as code: precision, memory layouts, memory, gradients, the specification and its errors."""

import re

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowstill.errors import RecipeError, ShapeError
from flowstill.features.pairs import SectionPair, pair_sections
from flowstill.features.sections import Section
from flowstill.features.taps import Flow, Reading, Tap, Tapped
from flowstill.knowledge.fsp import FSP, fsp_loss, fsp_matrix
from flowstill.nets.resnet import ResNet
from flowstill.transfer.knowledge import parse_knowledge
from oracles.fsp_checks import draw, loops, same

SIZES = [((8, 6), (8, 6)), ((8, 6), (4, 3)), ((4, 3), (8, 6)), ((15, 15), (7, 7)), ((8, 3), (4, 3)), ((6, 9), (6, 2))]


@pytest.mark.parametrize(("front_size", "back_size"), SIZES)
@pytest.mark.parametrize("wants_gradient", [False, True])
def test_memory_layout_does_not_matter(front_size, back_size, wants_gradient):
    front, back = draw(2, 3, *front_size), draw(2, 4, *back_size, seed=1)
    expected = loops(front, back)
    layouts = (
        lambda x: x,
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.mT.contiguous().mT,  # columns first
        lambda x: torch.stack([x, x], dim=4)[..., 0],  # every other number
    )
    for layout_front in layouts:
        for layout_back in layouts:
            maps = layout_front(front).requires_grad_(wants_gradient), layout_back(back).requires_grad_(wants_gradient)
            same(fsp_matrix(*maps), expected)


def test_gradient_is_the_same_in_both_memory_layouts():
    front, back = draw(2, 3, 8, 8), draw(2, 4, 4, 4, seed=1)
    gradients = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        maps = [x.contiguous(memory_format=memory_format).requires_grad_() for x in (front, back)]
        gradients.append(torch.autograd.grad(fsp_matrix(*maps).square().sum(), maps))
    for one, other in zip(*gradients, strict=True):
        same(one, other)


@pytest.mark.parametrize(("front_size", "back_size"), [((3, 4), (3, 4)), ((4, 6), (2, 3)), ((2, 3), (5, 7))])
def test_gradients_of_first_and_second_order(front_size, back_size):
    generator = torch.Generator().manual_seed(0)
    front, back = (  # no zeros of a ReLU: where several positions are the largest a maximum has no derivative
        torch.randn(2, 2, *size, generator=generator, dtype=torch.float64).requires_grad_()
        for size in (front_size, back_size)
    )
    assert gradcheck(fsp_matrix, (front, back))
    assert gradgradcheck(fsp_matrix, (front, back))
    target = draw(2, 2, 2, seed=5)

    def loss(front, back):
        return fsp_loss([fsp_matrix(front, back)], [target], [0.3])

    assert gradcheck(loss, (front, back))
    assert gradgradcheck(loss, (front, back))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_matrix_is_float32_also_under_autocast(dtype):
    front, back = draw(4, 16, 16, 16).to(dtype), draw(4, 8, 8, 8, seed=1).to(dtype)
    plain = fsp_matrix(front, back)
    with torch.autocast("cpu", torch.bfloat16):
        cast = fsp_matrix(front, back)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)
    same(cast, loops(front, back), tolerance=1e-6)  # what was read is exact, and so are its products in float32


def test_autocast_network_gives_a_float32_loss_near_the_loops():
    torch.manual_seed(0)
    network = ResNet(8, width=(4, 6, 8)).train()
    images = torch.randn(4, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        reading = Tapped(network, ["relu", "layer1", "layer2", "layer3"], until="taps")(images)
        loss = FSP().build(pair_sections(network, network, (3, 16, 16)))
        target = tuple(torch.zeros_like(g) for g in loss.target(reading))
        value = loss.compare(reading, target)
    assert reading["layer1"].dtype == torch.bfloat16
    assert value.dtype == torch.float32
    matrices = [loops(reading[flow.front], reading[flow.back]) for flow in loss.student_flows]
    same(value, sum(g.square().sum() for g in matrices) / 4 / (4 * 4 + 4 * 6 + 6 * 8), tolerance=1e-5)
    value.backward()
    assert network.conv1.weight.grad.norm() > 0


def test_half_precision_does_not_overflow():
    maps = torch.full((1, 1, 4, 4), 300.0, dtype=torch.float16)
    assert fsp_matrix(maps, maps).item() == 90000  # beyond float16's 65504


def test_float64_stays():
    assert fsp_matrix(draw(1, 2, 4, 4), draw(1, 2, 4, 4).float()).dtype == torch.float64
    assert fsp_loss([draw(1, 2, 2)], [draw(1, 2, 2)], [1.0]).dtype == torch.float64


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


def largest_made(matrix, front, back):
    with Largest() as largest:
        matrix(front, back).square().sum().backward()
    return largest.elements


@pytest.mark.parametrize("front_size", [(8, 8), (16, 16)])
def test_nothing_larger_than_the_maps_is_made(front_size):
    front, back = draw(4, 16, *front_size).requires_grad_(), draw(4, 32, 8, 8, seed=1).requires_grad_()
    allowed = max(front.numel(), back.numel(), 4 * 16 * 32)
    assert largest_made(fsp_matrix, front, back) <= allowed


def test_broadcast_product_would_be_noticed():
    front, back = draw(4, 16, 8, 8).requires_grad_(), draw(4, 32, 8, 8, seed=1).requires_grad_()
    assert largest_made(lambda f, b: (f[:, :, None] * b[:, None]).mean((3, 4)), front, back) == 4 * 16 * 32 * 64


def test_runs_on_meta_tensors_and_in_one_compiled_graph():
    front, back = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(2, 4, 4, 4, device="meta")
    assert fsp_matrix(front, back).shape == (2, 3, 4)
    front, back = draw(2, 3, 8, 8), draw(2, 4, 4, 4, seed=1)
    same(torch.compile(fsp_matrix, backend="eager", fullgraph=True)(front, back), fsp_matrix(front, back))


@pytest.mark.parametrize(
    ("front", "back", "said"),
    [
        (
            (2, 3, 4),
            (2, 3, 4, 4),
            "two maps (N, channels, height, width). Received: front (2, 3, 4) and back (2, 3, 4, 4)",
        ),
        ((2, 3, 4, 4), (3, 3, 4, 4), "Received different numbers: front (2, 3, 4, 4) and back (3, 3, 4, 4)"),
        (
            (2, 3, 8, 4),
            (2, 3, 4, 8),
            "one that is higher and one that is wider: front (2, 3, 8, 4) and back (2, 3, 4, 8)",
        ),
    ],
)
def test_maps_that_do_not_fit_are_refused(front, back, said):
    with pytest.raises(ShapeError, match=re.escape(said)):
        fsp_matrix(torch.zeros(front), torch.zeros(back))


def test_matrices_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=re.escape("(2, 3, 4) (student) and (2, 3, 1) (teacher) differ")):
        fsp_loss([torch.zeros(2, 3, 4)], [torch.zeros(2, 3, 1)], [1.0])
    with pytest.raises(ValueError, match="shorter"):
        fsp_loss([torch.zeros(2, 3, 4)] * 2, [torch.zeros(2, 3, 4)] * 2, [1.0])


def section(name, entry, channels, size, halves=True):
    """From ``channels`` to twice as many, its first block at ``name``.0."""
    shapes = (
        (channels, size * (1 + halves), size * (1 + halves)),
        (2 * channels, size, size),
        (2 * channels, size, size),
    )
    return Section(Tap(entry), Tap(f"{name}.0"), Tap(name), *shapes, scale=(1, 1), pooled_scale=(1, 1))


def pairs(teacher_channels=(2, 4, 8), student_channels=(2, 4, 8)):
    sections = [
        [section(f"{who}{i}", f"{who}{i - 1}" if i else "stem", c, 4) for i, c in enumerate(channels)]
        for who, channels in (("t", teacher_channels), ("s", student_channels))
    ]
    return tuple(SectionPair(teacher, student) for teacher, student in zip(*sections, strict=True))


def flow(front, back):
    return Flow(Tap(front), Tap(back))


def test_default_flows_go_from_section_input_to_section_output():
    loss = FSP().build(pairs())
    assert loss.teacher_flows == (flow("stem", "t0"), flow("t0", "t1"), flow("t1", "t2"))
    assert loss.student_flows == (flow("stem", "s0"), flow("s0", "s1"), flow("s1", "s2"))
    assert loss.teacher_taps == (Tap("stem"), Tap("t0"), Tap("t1"), Tap("t2"))
    assert loss.student_taps == (Tap("stem"), Tap("s0"), Tap("s1"), Tap("s2"))
    assert loss.storable
    assert not loss.teacher_logits
    assert not loss.student_logits
    assert loss.parts() == {}


def test_inside_flows_go_from_the_first_block_to_the_section_output():
    loss = FSP(flows="inside").build(pairs())
    assert loss.teacher_flows == (flow("t0.0", "t0"), flow("t1.0", "t1"), flow("t2.0", "t2"))
    assert loss.alphas == (pytest.approx(1 / (4 * 4 + 8 * 8 + 16 * 16)),) * 3


def test_weights_of_the_sections():
    sizes = (2 * 4, 4 * 8, 8 * 16)
    assert FSP().build(pairs()).alphas == (pytest.approx(1 / sum(sizes)),) * 3
    assert FSP(weighting="sum").build(pairs()).alphas == (1, 1, 1)
    assert FSP(weighting="element_mean").build(pairs()).alphas == tuple(pytest.approx(1 / size) for size in sizes)
    assert FSP(weighting=(3, 0, 0.5)).build(pairs()).alphas == (3, 0, 0.5)
    assert parse_knowledge({"name": "fsp", "weighting": [3, 0, 0.5]}) == FSP(weighting=(3, 0, 0.5))


def test_only_some_sections_are_trained():
    loss = FSP(sections=(2, 0)).build(pairs())
    assert loss.student_flows == (flow("s1", "s2"), flow("stem", "s0"))
    assert loss.alphas == (pytest.approx(1 / (8 * 16 + 2 * 4)),) * 2
    assert FSP(sections=(1,), weighting=(7,)).build(pairs()).alphas == (7,)


def test_one_section_trains_only_what_its_maps_depend_on():
    torch.manual_seed(0)
    network = ResNet(8, width=(4, 6, 8))
    loss = FSP(sections=(1,)).build(pair_sections(network, network, (3, 8, 8)))
    reading = Tapped(network, loss.student_taps, until="taps")(torch.randn(4, 3, 8, 8))
    loss.compare(reading, tuple(torch.zeros_like(g) for g in loss.target(reading))).backward()
    assert network.layer2[0].conv1.weight.grad.norm() > 0
    assert network.layer1[0].conv1.weight.grad.norm() > 0  # the front map is trained too
    assert network.layer3[0].conv1.weight.grad is None


def test_target_has_no_gradient():
    loss = FSP(sections=(0,)).build(pairs())
    maps = {Tap("stem"): draw(2, 2, 8, 8).requires_grad_(), Tap("t0"): draw(2, 4, 4, 4, seed=1).requires_grad_()}
    (matrix,) = loss.target(Reading(torch.zeros(2, 3, 8, 8), None, maps))
    assert not matrix.requires_grad
    same(matrix, loops(maps[Tap("stem")], maps[Tap("t0")]))


def test_maps_that_do_not_fit_are_named_by_their_taps():
    loss = FSP(sections=(0,)).build(pairs())
    maps = {Tap("stem"): torch.zeros(2, 2, 8, 4), Tap("t0"): torch.zeros(2, 4, 4, 8)}
    with pytest.raises(ShapeError, match=re.escape("Flow stem -> t0: An FSP matrix needs one map to be the larger")):
        loss.target(Reading(torch.zeros(2, 3, 8, 8), None, maps))


def test_unequal_channels_are_refused_naming_shapes_layers_and_fix():
    with pytest.raises(ShapeError) as caught:
        FSP().build(pairs(student_channels=(2, 3, 6)))
    said = str(caught.value)
    assert "section 1: 4x8 in the teacher (t0 -> t1), 3x6 in the student (s0 -> s1)" in said
    assert "section 2: 8x16 in the teacher (t1 -> t2), 6x12 in the student (s1 -> s2)" in said
    assert "section 0" not in said
    assert "Give the student the teacher's widths" in said
    assert "'sections: [0]'" in said
    FSP(sections=(0,)).build(pairs(student_channels=(2, 3, 6)))
    with pytest.raises(ShapeError) as caught:
        FSP().build(pairs(student_channels=(1, 3, 6)))
    assert "sections:" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"sections": (3,)}, RecipeError, "no section 3: the networks pair in 3 sections, numbered from 0 to 2"),
        ({"weighting": (1, 2)}, RecipeError, "weighting has 2 numbers (1.0, 2.0), but 3 sections are trained"),
        ({"weighting": (1, 2, 3), "sections": (0,)}, RecipeError, "has 3 numbers (1.0, 2.0, 3.0), but 1 sections"),
    ],
)
def test_counts_are_checked_when_the_loss_is_built(given, kind, said):
    with pytest.raises(kind, match=re.escape(said)):
        FSP(**given).build(pairs())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weighting": "eqaul"}, "Did you mean 'equal'?"),
        ({"weighting": (1, -1)}, "expected at least 0, got -1"),
        ({"weighting": (1, float("nan"))}, "finite"),
        ({"flows": "outside"}, "expected 'sections' or 'inside', got 'outside'"),
        ({"sections": (0, 0)}, "each once"),
        ({"sections": ()}, "at least one section"),
        ({"sections": (-1,)}, "expected at least 0, got -1"),
        ({"section": (0,)}, "Did you mean 'sections'?"),
    ],
)
def test_specification_refuses_invalid_options(given, said):
    with pytest.raises(RecipeError, match=re.escape(said)):
        FSP(**given)
