"""Dense flows and their steps against loops, their weights, and what is refused."""

import re
from itertools import pairwise

import pytest
import torch

from flowstill.errors import RecipeError, ShapeError
from flowstill.features.pairs import SectionPair, pair_sections, pairs_by_hand
from flowstill.features.sections import Section
from flowstill.features.taps import Flow, Reading, Tap, Tapped
from flowstill.knowledge.dense import Dense, all_spans, step_spans
from flowstill.knowledge.fsp import FSP, FSPLoss
from flowstill.nets.resnet import ResNet
from flowstill.transfer.knowledge import parse_knowledge
from oracles import dense as oracle
from oracles.fsp_checks import WEIGHTINGS, draw, same

WIDTHS = (4, 6, 8)
CHANNELS = (4, 4, 6, 8)  # of X_0 .. X_3
SIZES = (8, 8, 4, 2)
TAPS = ("relu", "layer1", "layer2", "layer3")


def readings(seed=0):
    """Maps of a teacher and a student of this shape, after ReLU."""
    return [
        Reading(
            torch.zeros(2, 3, 8, 8),
            None,
            {
                Tap(tap): draw(2, c, s, s, seed=seed + 10 * i + who)
                for i, (tap, c, s) in enumerate(zip(TAPS, CHANNELS, SIZES, strict=True))
            },
        )
        for who in (0, 5)
    ]


def lists(reading):
    return [reading[tap].tolist() for tap in TAPS]


@pytest.fixture(scope="module")
def pairs():
    torch.manual_seed(0)
    return pair_sections(ResNet(14, width=WIDTHS), ResNet(8, width=WIDTHS), (3, 8, 8))


def value(knowledge, pairs, teacher, student):
    loss = knowledge.build(pairs)
    return loss.compare(student, loss.target(teacher))


@pytest.mark.parametrize("n", range(7))
def test_spans_and_steps_are_those_of_the_loops(n):
    assert list(all_spans(n)) == oracle.spans(n)
    assert len(all_spans(n)) == n * (n + 1) // 2
    for s in range(1, n + 1):
        assert list(step_spans(n, s)) == list(step_spans(n, s, "start")) == oracle.start_anchored(n, s)
        assert list(step_spans(n, s, "end")) == oracle.end_anchored(n, s)


def test_three_sections_have_the_slides_counts():
    assert [len(step_spans(3, s)) for s in (1, 2, 3)] == [3, 2, 1]
    assert [len(step_spans(3, s, "end")) for s in (1, 2, 3)] == [1, 2, 3]


@pytest.mark.parametrize("anchor", ["start", "end"])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_each_span_belongs_to_exactly_one_step(n, anchor):
    steps = [span for s in range(1, n + 1) for span in step_spans(n, s, anchor)]
    assert sorted(steps) == sorted(all_spans(n))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"step": 1},
        {"step": 2},
        {"step": 3},
        {"step": 1, "anchor": "end"},
        {"step": 2, "anchor": "end"},
        {"step": 3, "anchor": "end"},
        {"spans": ((1, 3), (0, 2))},
    ],
)
def test_loss_equals_the_loops(pairs, weighting, options):
    teacher, student = readings()
    step = options.get("step")
    anchored = oracle.end_anchored if "anchor" in options else oracle.start_anchored
    spans = options.get("spans") or (anchored(3, step) if step else oracle.spans(3))
    alphas = oracle.alphas(weighting, CHANNELS, spans)
    expected = oracle.loss(lists(teacher), lists(student), spans, alphas)
    same(value(Dense(weighting=weighting, **options), pairs, teacher, student), expected)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("flow", [("relu", "layer1"), ("layer1", "layer3")])
def test_one_section_is_fsp(weighting, flow):
    network = ResNet(8, width=WIDTHS)
    pairs = pairs_by_hand(network, network, (3, 8, 8), [(flow, flow)])
    one, other = Dense(weighting=weighting).build(pairs), FSP(weighting=weighting).build(pairs)
    assert type(one) is type(other) is FSPLoss
    assert one.alphas == other.alphas
    assert (one.teacher_flows, one.student_flows) == (other.teacher_flows, other.student_flows)
    teacher, student = readings()
    assert torch.equal(one(teacher, student), other(teacher, student))


@pytest.mark.parametrize("weighting", [*WEIGHTINGS, (1, 0.5, 0, 2, 3, 0.25)])
@pytest.mark.parametrize("anchor", ["start", "end"])
def test_steps_sum_to_the_dense_loss(pairs, weighting, anchor):
    teacher, student = readings()
    whole = value(Dense(weighting=weighting), pairs, teacher, student)
    steps = [value(Dense(weighting=weighting, step=s, anchor=anchor), pairs, teacher, student) for s in (1, 2, 3)]
    same(sum(steps), whole.item())
    assert all(step > 0 for step in steps)


def test_adjacent_flows_alone_are_fsp(pairs):
    teacher, student = readings()
    neighbours = Dense(weighting="sum", spans=tuple(pairwise(range(4))))
    assert torch.equal(value(neighbours, pairs, teacher, student), value(FSP(weighting="sum"), pairs, teacher, student))


def test_flows_of_a_cifar_resnet_match_the_specification():
    network = ResNet(8)
    loss = Dense().build(pair_sections(network, network, (3, 32, 32)))
    reading = Tapped(network, loss.teacher_taps, until="taps")(torch.zeros(1, 3, 32, 32))
    matrices = loss.target(reading)
    assert [g[0].numel() for g in matrices] == [256, 512, 1024, 512, 1024, 2048]
    assert loss.alphas == (pytest.approx(1 / 5376),) * 6
    assert [(f.front.path, f.back.path) for f in loss.student_flows] == [(TAPS[a], TAPS[b]) for a, b in oracle.spans(3)]
    assert loss.storable


def gradients(options, seed=0):
    """For each part of a student, the norm of its gradient (None: it has none)."""
    torch.manual_seed(seed)
    teacher, student = ResNet(14, width=WIDTHS), ResNet(8, width=WIDTHS)
    loss = Dense(**options).build(pair_sections(teacher, student, (3, 8, 8)))
    images = torch.randn(4, 3, 8, 8)
    target = loss.target(Tapped(teacher, loss.teacher_taps, until="taps")(images))
    loss.compare(Tapped(student, loss.student_taps, until="taps")(images), target).backward()
    found = {}
    for name, parameter in student.named_parameters():
        part = name.split(".")[0]
        if parameter.grad is not None:
            found[part] = found.get(part, 0.0) + parameter.grad.norm().item()
    return found


@pytest.mark.parametrize("step", [1, 2, 3])
def test_end_anchored_steps_leave_later_sections_unchanged(step):
    found = gradients({"step": step, "anchor": "end"})
    assert set(found) == {"conv1", "bn1", *(f"layer{s}" for s in range(1, step + 1))}
    assert all(norm > 0 for norm in found.values())


@pytest.mark.parametrize("step", [1, 2, 3])
def test_start_anchored_steps_reach_earlier_sections(step):
    found = gradients({"step": step})
    assert set(found) == {"conv1", "bn1", "layer1", "layer2", "layer3"}
    assert all(norm > 0 for norm in found.values())


def test_numbers_belong_to_the_whole_set_or_to_the_spans_named(pairs):
    numbers = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert Dense(weighting=numbers).build(pairs).alphas == numbers
    assert Dense(weighting=numbers, step=2).build(pairs).alphas == (4, 5)
    assert Dense(weighting=numbers, step=2, anchor="end").build(pairs).alphas == (2, 4)
    assert Dense(weighting=(7, 8), spans=((2, 3), (0, 1))).build(pairs).alphas == (7, 8)


def test_names_in_a_recipe(pairs):
    given = {"name": "dense", "spans": [[0, 3], [1, 2]], "weighting": [1, 2], "shuffle": "realisable"}
    assert parse_knowledge(given) == Dense(spans=((0, 3), (1, 2)), weighting=(1, 2), shuffle="realisable")
    assert parse_knowledge("dense") == Dense()
    flows = Dense(spans=((0, 3), (1, 2))).build(pairs).student_flows
    assert flows == (Flow(Tap("relu"), Tap("layer3")), Flow(Tap("layer1"), Tap("layer2")))


def section(name, entry, channels):
    shapes = [(count, 4, 4) for count in channels]
    return Section(Tap(entry), Tap(f"{name}.0"), Tap(name), *shapes, scale=(1, 1))


def test_taps_are_section_ends_even_if_the_next_section_starts_later():
    chain = [section("a", "in", (2, 3, 3)), section("c", "b", (9, 9, 5))]
    loss = Dense().build(tuple(SectionPair(s, s) for s in chain))
    assert [(f.front.path, f.back.path) for f in loss.student_flows] == [("in", "a"), ("in", "c"), ("a", "c")]
    assert loss.alphas == (pytest.approx(1 / (2 * 3 + 2 * 5 + 3 * 5)),) * 3


def test_frozen_below_is_the_start_of_the_step(pairs):
    for anchor in ("start", "end"):
        below = [Dense(step=s, anchor=anchor, freeze_below=True).build(pairs).frozen_below for s in (1, 2, 3)]
        assert below == [None, Tap("layer1"), Tap("layer2")]
    assert Dense(step=3).build(pairs).frozen_below is None
    assert Dense().build(pairs).frozen_below is FSP().build(pairs).frozen_below is None


def test_unequal_channels_are_refused_naming_spans_layers_and_fix():
    teacher = [section("t1", "t0", (2, 2, 4)), section("t2", "t1", (4, 4, 8))]
    student = [section("s1", "s0", (2, 2, 4)), section("s2", "s1", (4, 4, 6))]
    pairs = tuple(map(SectionPair, teacher, student))
    with pytest.raises(ShapeError) as caught:
        Dense().build(pairs)
    said = str(caught.value)
    assert "span [0, 2]: 2x8 in the teacher (t0 -> t2), 2x6 in the student (s0 -> s2)" in said
    assert "span [1, 2]: 4x8 in the teacher (t1 -> t2), 4x6 in the student (s1 -> s2)" in said
    assert "span [0, 1]: " not in said
    assert "'spans: [[0, 1]]'" in said
    assert Dense(spans=((0, 1),), weighting="sum").build(pairs).alphas == (1,)
    with pytest.raises(ShapeError) as caught:
        Dense(step=2).build(pairs)
    assert "spans:" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"step": 4}, "dense: no step 4: the networks pair in 3 sections, so steps run from 1 to 3; change 'step'."),
        ({"spans": ((0, 1), (2, 4))}, "no span (2, 4): the networks pair in 3 sections, so spans end at 3 at most"),
        (
            {"weighting": (1, 2, 3)},
            "weighting has 3 numbers (1.0, 2.0, 3.0), but there are 6 spans; give one for each of [(0, 1), (0, 2)",
        ),
        ({"weighting": (1, 2), "step": 2}, "but there are 6 spans"),
        ({"weighting": (1, 2), "spans": ((0, 1),)}, "but there are 1 spans; give one for each of [(0, 1)]"),
    ],
)
def test_counts_are_checked_when_the_loss_is_built(pairs, given, said):
    with pytest.raises(RecipeError, match=re.escape(said)):
        Dense(**given).build(pairs)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"step": 1, "spans": ((0, 1),)}, "step 1 selects its own spans; give 'step' or 'spans', not both"),
        ({"freeze_below": True}, "'freeze_below' needs a step; add 'step'"),
        ({"freeze_below": True, "spans": ((0, 1),)}, "'freeze_below' needs a step"),
        ({"anchor": "end"}, "'anchor' needs a step"),
        ({"step": 0}, "expected at least 1, got 0"),
        ({"spans": ()}, "at least one span"),
        ({"spans": ((0, 1), (0, 1))}, "each once"),
        ({"spans": ((1, 1),)}, "span (1, 1) ends before it starts"),
        ({"spans": ((2, 1),)}, "span (2, 1) ends before it starts"),
        ({"spans": ((-1, 1),)}, "expected at least 0, got -1"),
        ({"step": 1, "anchor": "ends"}, "Did you mean 'end'?"),
        ({"weighting": "eqaul"}, "Did you mean 'equal'?"),
        ({"steps": 1}, "Did you mean 'step'?"),
    ],
)
def test_specification_refuses_invalid_options(given, said):
    with pytest.raises(RecipeError, match=re.escape(said)):
        Dense(**given)
