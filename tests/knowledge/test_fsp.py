"""FSP against the paper: 13 numbered checks, and the wrong variants that they must refuse."""

import copy
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from flowstill.features.pairs import pair_sections
from flowstill.features.taps import Tapped
from flowstill.knowledge import fsp
from flowstill.nets.resnet import ResNet
from flowstill.recipes.recipe import AfterStage, Job, Net, Recipe
from oracles import fsp as oracle
from oracles import fsp_checks as checks
from oracles.fsp_wrong import RIGHT, SEEN_BY, WRONG
from support.residual_networks import calibrated, permuted

OURS = SimpleNamespace(matrix=fsp.fsp_matrix, loss=fsp.fsp_loss, weights=fsp.flow_weights)
CHECKS = {name.split("_")[1]: check for name, check in vars(checks).items() if name.startswith("oracle_")}
TAPS = ("relu", "layer1", "layer2", "layer3")  # X0 .. X3


def maps_of(network, images):
    reading = Tapped(network, TAPS, until="taps")(images)
    return [reading[tap] for tap in TAPS]


def realisable_orders(widths):
    """pi_0 = pi_1; the zero-padding shortcut copies the first channels and pads behind them, and so do pi_2, pi_3."""
    orders = [checks.permutation(widths[0], seed=3)] * 2
    for narrow, wide in pairwise(widths):
        orders.append(torch.cat([orders[-1], narrow + checks.permutation(wide - narrow, seed=wide)]))
    return orders


@pytest.fixture(scope="module")
def teachers():
    """A ResNet-26 and the same permuted, with the maps of one image."""
    teacher, orders = calibrated(26), realisable_orders((16, 32, 64))
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    twin = permuted(teacher, orders)
    maps, moved = maps_of(teacher, images), maps_of(twin, images)
    return SimpleNamespace(teacher=teacher, twin=twin, orders=orders, images=images, maps=maps, moved=moved)


def run(number, implementation, teachers):
    extra = (teachers.maps, teachers.moved, teachers.orders) if number == 8 else ()
    CHECKS[f"{number:02d}"](implementation, *extra)


def test_equals_the_loops():
    checks.equals_the_loops(OURS)


def test_oracle_01_constant_maps_give_their_square():
    checks.oracle_01_constant_maps_give_their_square(OURS)


def test_oracle_02_is_bilinear_in_positive_factors():
    checks.oracle_02_is_bilinear_in_positive_factors(OURS)


def test_oracle_03_swapped_inputs_give_the_transpose():
    checks.oracle_03_swapped_inputs_give_the_transpose(OURS)


def test_oracle_04_common_spatial_permutation_changes_nothing():
    checks.oracle_04_common_spatial_permutation_changes_nothing(OURS)


def test_oracle_05_identical_networks_have_no_loss_and_no_gradient():
    checks.oracle_05_identical_networks_have_no_loss_and_no_gradient(OURS)


def test_oracle_06_ones_against_zeros_count_the_entries():
    checks.oracle_06_ones_against_zeros_count_the_entries(OURS)


def test_oracle_07_pooled_map_is_max_pooled():
    checks.oracle_07_pooled_map_is_max_pooled(OURS)


def test_oracle_08_permuted_teacher_has_permuted_matrices(teachers):
    logits = teachers.teacher(teachers.images)
    assert (teachers.twin(teachers.images) - logits).norm() < 2e-6 * logits.norm()
    for x, moved, order in zip(teachers.maps, teachers.moved, teachers.orders, strict=True):
        assert not torch.equal(order, torch.arange(len(order)))
        checks.same(moved, x[:, order], tolerance=2e-6)
    run(8, OURS, teachers)


def test_oracle_08_order_that_tears_a_shortcut_is_another_network(teachers):
    logits = teachers.teacher(teachers.images)
    torn = permuted(teachers.teacher, [checks.permutation(16, seed=9), *teachers.orders[1:]])
    assert (torn(teachers.images) - logits).norm() > 0.01 * logits.norm()


def test_oracle_09_joint_permutation_changes_nothing():
    checks.oracle_09_joint_permutation_changes_nothing(OURS)


def test_oracle_10_rotated_positions_keep_the_matrix():
    checks.oracle_10_rotated_positions_keep_the_matrix(OURS)


def test_oracle_11_stage_one_leaves_the_head_and_the_teacher_alone():
    teacher, student = calibrated(14, (4, 6, 8), size=8), ResNet(8, width=(4, 6, 8))
    loss = fsp.FSP().build(pair_sections(teacher, student, (3, 8, 8)))
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    before, start = copy.deepcopy(teacher.state_dict()), copy.deepcopy(student.state_dict())
    read_teacher = Tapped(teacher, loss.teacher_taps, until="taps")
    read_student = Tapped(student, loss.student_taps, until="taps")
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    losses = []
    for _ in range(8):
        value = loss.compare(read_student(images), loss.target(read_teacher(images)))
        optimizer.zero_grad()
        value.backward()
        assert student.fc.weight.grad is None
        assert student.fc.bias.grad is None
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    unmoved = {name for name, tensor in student.named_parameters() if torch.equal(start[name], tensor)}
    assert unmoved == {"fc.weight", "fc.bias"}  # no decay either


@pytest.mark.parametrize("weighting", checks.WEIGHTINGS)
def test_stage_one_equals_the_loops(weighting):
    teacher, student = calibrated(14, (4, 6, 8), size=8), calibrated(8, (4, 6, 8), size=8, seed=1)
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    loss = fsp.FSP(weighting=weighting).build(pair_sections(teacher, student, (3, 8, 8)))
    value = loss.compare(
        Tapped(student, loss.student_taps)(images), loss.target(Tapped(teacher, loss.teacher_taps)(images))
    )
    assert value.dtype == torch.float32
    lists = [[x.tolist() for x in maps_of(network, images)] for network in (teacher, student)]
    checks.same(value, oracle.stage_one(*lists, weighting), tolerance=1e-5)


# Section 4 of the paper: thousands of iterations until the learning rate changes; the last is the end.
FULL, SHORT, FSP_CIFAR10, FSP_CIFAR100, HINT = (32, 48, 64), (11, 16, 21), (11, 16, 21), (16, 24, 32), (25, 35)
NETWORKS = 3


def fast_optimisation(first, second, shared):
    """A row of Table 1 or 2: three networks, their transfer stage shared, each its own, or left out."""
    transfer = {"name": "transfer", "steps": 1000 * first[-1], "transfer": "fsp"} if first else None
    task = {"name": "task", "steps": 1000 * second[-1], "task": "labels"}
    jobs = {"teacher": Job(Net("resnet26"))}
    if transfer and shared:
        jobs["transfer"] = Job(Net("resnet26"), (transfer,), teacher="teacher")
    for number in range(NETWORKS):
        stages = (transfer, task) if transfer and not shared else (task,)
        start = AfterStage("transfer", "transfer") if transfer and shared else None
        jobs[f"net{number}"] = Job(Net("resnet26"), stages, teacher="teacher" if transfer else None, start=start)
    return Recipe("table", {"name": "cifar10"}, jobs)


@pytest.mark.parametrize(
    ("first", "second", "shared", "printed"),
    [
        (None, FULL, False, 192),
        (None, SHORT, False, 63),
        (HINT, SHORT, True, 98),
        (FSP_CIFAR10, SHORT, True, 84),
        (FSP_CIFAR10, SHORT, False, 126),
        (FSP_CIFAR100, SHORT, True, 95),
    ],
)
def test_oracle_12_iterations_are_those_of_the_tables(first, second, shared, printed):
    jobs = fast_optimisation(first, second, shared).jobs
    assert sum(stage.steps for job in jobs.values() for stage in job.stages) == 1000 * printed


def test_oracle_13_times_are_those_of_the_paper():
    plain, live, stored = 0.16, 0.35, 0.19  # seconds per iteration
    teachers, task = 1000 * NETWORKS * FULL[-1] * plain, 1000 * NETWORKS * SHORT[-1] * plain
    transfer = 1000 * FSP_CIFAR10[-1]
    assert teachers / 3600 == pytest.approx(8.53, abs=0.005)  # the paper prints 8.6
    assert (transfer * live + task) / 3600 == pytest.approx(4.84, abs=0.005)
    assert teachers / (transfer * live + task) == pytest.approx(1.76, abs=0.005)  # its 1.78 is 8.6 / 4.84
    assert teachers / (transfer * stored + task) == pytest.approx(2.18, abs=0.005)
    assert teachers / (NETWORKS * transfer * stored + task) == pytest.approx(1.39, abs=0.005)


def test_checks_accept_the_right_implementation(teachers):
    assert sorted(CHECKS) == [f"{number:02d}" for number in range(1, 11)]
    checks.equals_the_loops(RIGHT)
    for number in range(1, 11):
        run(number, RIGHT, teachers)


@pytest.mark.parametrize("wrong", WRONG)
def test_loops_refuse_wrong_variants(wrong):
    with pytest.raises(AssertionError):
        checks.equals_the_loops(WRONG[wrong])


@pytest.mark.parametrize("wrong", SEEN_BY)
def test_numbered_checks_refuse_wrong_variants(wrong, teachers):
    for number in SEEN_BY[wrong]:
        with pytest.raises(AssertionError):
            run(number, WRONG[wrong], teachers)


def test_each_numbered_check_can_fail():
    assert {number for numbers in SEEN_BY.values() for number in numbers} == set(range(1, 11))
