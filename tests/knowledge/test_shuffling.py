"""Shuffled FSP matrices: which orders are drawn, and that a network can have the realisable ones."""

import copy
import functools
import re
from itertools import pairwise

import pytest
import torch

from flowstill.data.batch import Batch
from flowstill.errors import RecipeError
from flowstill.features.pairs import SectionPair, pair_sections
from flowstill.features.sections import Section, find_sections
from flowstill.features.taps import Flow, Tap, Tapped
from flowstill.knowledge.dense import Dense
from flowstill.knowledge.fsp import FSP
from flowstill.knowledge.shuffling import drawn_orders, shuffled
from flowstill.nets.resnet import ResNet
from flowstill.transfer.knowledge import Setting, parse_knowledge
from flowstill.transfer.procedures import stage
from flowstill.transfer.stages import Update
from oracles import dense as oracle
from oracles.fsp_checks import draw, same
from support.residual_networks import calibrated, permuted
from support.stage_runners import read_teacher, stage_runner

SHUFFLES = ("realisable", "independent", "per_matrix")
WIDTHS = (5, 9, 14)


@pytest.fixture(scope="module")
def teacher():
    return calibrated(26, WIDTHS, size=16).double()


def setting(teacher, student, seed=0):
    return Setting(teacher, student, (3, 16, 16), 10, seed)


@functools.cache
def pairs_with_itself(teacher):
    return pair_sections(teacher, teacher, (3, 16, 16))


def built(teacher, seed=0, knowledge=FSP, **options):
    return knowledge(**options).build(pairs_with_itself(teacher), setting(teacher, teacher, seed))


def images(count=2, seed=1):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chained(loss):
    """pi_0 .. pi_3 of three matrices that share an order at each tap."""
    orders = loss.orders
    return [orders[0][0], *(columns for _, columns in orders)]


def listed(orders):
    return [(rows.tolist(), columns.tolist()) for rows, columns in orders]


def section(name, entry, shapes, first=None):
    """Its entry, first and exit have these numbers of channels."""
    shapes = [(channels, 8, 8) for channels in shapes]
    return Section(Tap(entry), Tap(first or f"{name}.0"), Tap(name), *shapes, scale=(1, 1))


def test_shuffled_matrices_equal_the_loops():
    matrices, rows, columns = draw(2, 3, 4), torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2])
    expected = [oracle.shuffled(g, rows.tolist(), columns.tolist()) for g in matrices.tolist()]
    same(shuffled(matrices, rows, columns), expected)


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_orders_are_permutations_that_depend_only_on_the_seed(teacher, shuffle):
    state = torch.get_rng_state()
    orders = built(teacher, seed=3, shuffle=shuffle).orders
    assert torch.equal(torch.get_rng_state(), state)
    for (rows, columns), (m, n) in zip(orders, [(5, 5), (5, 9), (9, 14)], strict=True):
        assert sorted(rows.tolist()) == list(range(m))
        assert sorted(columns.tolist()) == list(range(n))
    torch.manual_seed(12)
    assert listed(built(teacher, seed=3, shuffle=shuffle).orders) == listed(orders)
    others = [listed(built(teacher, seed=seed, shuffle=shuffle).orders) for seed in range(20) if seed != 3]
    assert listed(orders) not in others
    assert len({str(other) for other in others}) == len(others)


def test_realisable_orders_continue_along_the_chain(teacher):
    for seed in range(10):
        loss = built(teacher, seed=seed, shuffle="realisable")
        orders = [order.tolist() for order in chained(loss)]
        assert orders[0] == orders[1]
        assert all(oracle.extends(wide, narrow) for narrow, wide in pairwise(orders))
        assert all(torch.equal(rows, before) for (rows, _), before in zip(loss.orders, chained(loss)[:-1], strict=True))
    first = {tuple(chained(built(teacher, seed=seed, shuffle="realisable"))[0].tolist()) for seed in range(50)}
    assert len(first) > 25  # of 120
    added = {tuple(chained(built(teacher, seed=seed, shuffle="realisable"))[3][9:].tolist()) for seed in range(50)}
    assert len(added) > 25


@pytest.mark.parametrize("seed", range(3))
def test_realisable_orders_equal_a_network_with_permuted_weights(teacher, seed):
    """Oracle (a) 8 with the orders that are drawn: the same logits, and exactly the shuffled matrices."""
    loss, plain = built(teacher, seed=seed, shuffle="realisable"), built(teacher)
    twin, given = permuted(teacher, chained(loss)), images()
    logits = teacher(given)
    assert (twin(given) - logits).norm() < 1e-12 * logits.norm()
    reading_t, moved = (Tapped(network, plain.teacher_taps, until="taps")(given) for network in (teacher, twin))
    for matrix, orders, expected in zip(loss.target(reading_t), loss.orders, plain.target(moved), strict=True):
        assert not torch.equal(matrix, expected)
        same(shuffled(matrix, *orders), expected)
    assert loss.compare(moved, loss.target(reading_t)) < 1e-20 < 1e-6 < loss.compare(reading_t, loss.target(reading_t))


def test_independent_orders_tear_the_shortcut(teacher):
    """pi_0 is not pi_1, so no network with identity shortcuts has these channels; yet each tap has one order."""
    loss = built(teacher, shuffle="independent")
    orders, given = chained(loss), images()
    assert not torch.equal(orders[0], orders[1])
    assert not oracle.extends(orders[2].tolist(), orders[1].tolist())
    assert all(torch.equal(rows, before) for (rows, _), before in zip(loss.orders, orders[:-1], strict=True))
    logits = teacher(given)
    assert (permuted(teacher, orders)(given) - logits).norm() > 0.01 * logits.norm()


def test_per_matrix_orders_do_not_agree_at_a_tap(teacher):
    orders = built(teacher, shuffle="per_matrix").orders
    for (_, columns), (rows, _) in pairwise(orders):
        assert not torch.equal(columns, rows)
    assert not torch.equal(*orders[0])  # both of five channels


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_orders_cover_the_whole_network_whatever_is_trained(teacher, shuffle):
    """So that the steps of one stage, and dense flows, are consistent."""
    whole = listed(built(teacher, shuffle=shuffle).orders)
    assert listed(built(teacher, shuffle=shuffle, sections=(2,)).orders) == [whole[2]]
    assert listed(built(teacher, shuffle=shuffle, sections=(1, 0)).orders) == [whole[1], whole[0]]
    spans = ((0, 1), (1, 2), (2, 3))
    assert listed(built(teacher, knowledge=Dense, shuffle=shuffle, spans=spans).orders) == whole
    if shuffle != "per_matrix":
        ((rows, columns),) = built(teacher, knowledge=Dense, shuffle=shuffle, spans=((0, 3),)).orders
        assert (rows.tolist(), columns.tolist()) == (whole[0][0], whole[2][1])
        inside = listed(built(teacher, shuffle=shuffle, flows="inside").orders)
        assert [columns for _, columns in inside] == [columns for _, columns in whole]


def test_first_block_and_exit_have_one_realisable_order(teacher):
    for rows, columns in built(teacher, shuffle="realisable", flows="inside").orders:
        assert torch.equal(rows, columns)


def test_a_narrower_map_gets_a_new_order_and_gaps_are_bridged():
    chain = [section("a", "in", (6, 8, 8)), section("b", "a", (8, 4, 4)), section("d", "c", (7, 7, 9))]
    flows = [Flow(Tap("in"), Tap("a")), Flow(Tap("a"), Tap("b")), Flow(Tap("c"), Tap("d"))]
    narrowed = set()
    for seed in range(40):
        (into, a), (_, b), (c, d) = listed(drawn_orders("realisable", chain, flows, seed))
        assert oracle.extends(a, into)
        assert sorted(b) == [0, 1, 2, 3]
        assert oracle.extends(c, b)  # another section, without a partner, lies between
        assert oracle.extends(d, c)
        narrowed.add((tuple(b), tuple(x for x in a if x < 4)))
    assert sum(b != kept for b, kept in narrowed) > 20
    assert len({b for b, _ in narrowed}) > 12


def test_no_shuffle_draws_nothing(teacher):
    assert built(teacher).orders == ()
    assert list(built(teacher).buffers()) == []
    assert drawn_orders(None, find_sections(teacher, (3, 16, 16)), [], 0) == ()


def test_the_target_is_unshuffled_and_the_loss_shuffles_it(teacher):
    loss, plain, student = built(teacher, shuffle="realisable"), built(teacher), calibrated(8, WIDTHS, size=16).double()
    reading_t, reading_s = (
        Tapped(network, plain.teacher_taps, until="taps")(images()) for network in (teacher, student)
    )
    assert all(map(torch.equal, loss.target(reading_t), plain.target(reading_t)))
    maps = [[reading[tap].tolist() for tap in plain.teacher_taps] for reading in (reading_t, reading_s)]
    spans, weights = [(0, 1), (1, 2), (2, 3)], [1 / (25 + 45 + 126)] * 3
    same(loss.compare(reading_s, loss.target(reading_t)), oracle.loss(*maps, spans, weights, listed(loss.orders)))
    assert (
        abs(loss.compare(reading_s, loss.target(reading_t)) - plain.compare(reading_s, plain.target(reading_t))) > 1e-3
    )


def test_orders_move_with_the_loss_and_are_not_saved(teacher):
    loss = built(teacher, shuffle="realisable")
    assert loss.state_dict() == {}
    assert {buffer.device.type for buffer in loss.to("meta").buffers()} == {"meta"}
    assert all(order.is_meta for orders in loss.orders for order in orders)
    assert loss.parts() == {}


def trained(teacher, knowledge, seed=0, steps=4):
    """A student after some updates by the engine."""
    torch.manual_seed(5)
    student = ResNet(8, width=WIDTHS).double()
    row = stage("transfer", steps, 0.05, [Update(transfer=knowledge)])
    runner = stage_runner(row, teacher, student, (3, 16, 16), seed)
    for t in range(steps):
        index = torch.arange(8)
        given = Batch(images(8, seed=t), index % 10, index, torch.zeros_like(index))
        runner.update(0, given, read_teacher(runner, teacher, given.images), t)
    runner.close()
    return student.state_dict()


def test_training_on_shuffled_matrices_is_training_on_the_permuted_teacher(teacher):
    twin = permuted(teacher, chained(built(teacher, seed=7, shuffle="realisable")))
    one = trained(teacher, FSP(shuffle="realisable"), seed=7)
    other, without, elsewhere = (
        trained(twin, FSP()),
        trained(teacher, FSP()),
        trained(teacher, FSP(shuffle="realisable"), seed=8),
    )
    weight = "layer2.0.conv1.weight"
    assert (one[weight] - without[weight]).abs().max() > 1e-6
    assert (one[weight] - elsewhere[weight]).abs().max() > 1e-6
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-9, atol=1e-12)


def test_orders_differ_between_seeds_and_need_no_setting(teacher):
    pairs = (SectionPair(section("a", "in", (30, 30, 30)), section("a", "in", (30, 30, 30))),)
    plain = FSP(shuffle="independent").build(pairs)
    assert listed(plain.orders) == listed(FSP(shuffle="independent").build(pairs, setting(teacher, teacher, 0)).orders)
    assert listed(plain.orders) != listed(FSP(shuffle="independent").build(pairs, setting(teacher, teacher, 1)).orders)


def test_a_copy_of_the_loss_keeps_its_orders(teacher):
    loss = built(teacher, shuffle="per_matrix")
    assert listed(copy.deepcopy(loss).orders) == listed(loss.orders)


def test_recipes_say_how_to_shuffle():
    assert parse_knowledge({"name": "fsp", "shuffle": "independent"}) == FSP(shuffle="independent")
    for knowledge in (FSP, Dense):
        with pytest.raises(RecipeError, match=re.escape("Did you mean 'realisable'?")):
            knowledge(shuffle="realizable")
