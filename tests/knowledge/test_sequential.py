"""Transfer in steps: what each update runs, what a frozen step leaves unchanged, and the recipe that compares them."""

import re

import pytest
import torch

import flowstill as fs
from flowstill.data.batch import Batch
from flowstill.data.spec import Augment, Data
from flowstill.engine.student import parameters_below
from flowstill.errors import RecipeError
from flowstill.features.pairs import pair_sections
from flowstill.features.taps import Tap
from flowstill.knowledge.dense import Dense
from flowstill.knowledge.fsp import FSP
from flowstill.nets.resnet import ResNet
from flowstill.recipes.dump import dump_recipe
from flowstill.recipes.load import load_recipe
from flowstill.recipes.recipe import Job, Net, Recipe
from flowstill.transfer.procedures import alone, blocks, cyclic, stage
from flowstill.transfer.schedules import Constant, Cosine, Linear, Milestones
from flowstill.transfer.stages import Optimizer, Player, Stage, Update
from support.compared_runs import PLAIN, assert_near, assert_same, resumed
from support.stage_runners import read_teacher, stage_runner
from support.without_batchnorm import THREE_SECTIONS

WIDTHS = (4, 6, 8)
SHAPE = (3, 8, 8)
STEPS = [Dense(step=s) for s in (1, 2, 3)]
FROZEN = [Dense(step=s, freeze_below=True) for s in (1, 2, 3)]
BELOW = {1: set(), 2: {"conv1", "bn1", "layer1"}, 3: {"conv1", "bn1", "layer1", "layer2"}}  # of X_{s-1}; none in step 1
PARTS = {"conv1", "bn1", "layer1", "layer2", "layer3"}  # what dense flows reach


def batch(t):
    images = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(t))
    return Batch(images, torch.arange(8), torch.arange(8), torch.zeros(8, dtype=torch.long), step=t, steps=99)


def start(row, student=None):
    torch.manual_seed(0)
    teacher = ResNet(14, width=WIDTHS).requires_grad_(False).eval()
    student = student or ResNet(8, width=WIDTHS)
    return stage_runner(row, teacher, student, SHAPE), teacher, student


def advance(runner, teacher, t):
    """What batch t of the stage runs. Returns the parts whose parameters moved in each update."""
    moved = []
    for number in runner.slot(t):
        reading = read_teacher(runner, teacher, batch(t).images, [number])
        before = {name: p.detach().clone() for name, p in runner.network.named_parameters()}
        runner.update(number, batch(t), reading, t)
        changed = {n for n, p in runner.network.named_parameters() if not torch.equal(before[n], p)}
        for part in {name.split(".")[0] for name in changed}:  # a part moves as a whole
            assert all(n in changed for n in before if n.split(".")[0] == part)
        moved.append({name.split(".")[0] for name in changed})
    return moved


OPTIMIZERS = [
    Optimizer(weight_decay=0.01),
    Optimizer("adam", weight_decay=0.01),
    Optimizer("adamw", weight_decay=0.01),
    Optimizer("rmsprop", weight_decay=0.01),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.name)
@pytest.mark.parametrize("anchor", ["start", "end"])
def test_a_frozen_step_leaves_layers_below_bit_identical(optimizer, anchor):
    """With momentum from the steps before, and decay; in its own update each step moves all that is not below it."""
    steps = [Dense(step=s, anchor=anchor, freeze_below=True) for s in (1, 2, 3)]
    (row,) = cyclic(steps, steps=9, lr=0.01, optimizer=optimizer)
    runner, teacher, _ = start(row)
    above = {"start": PARTS, "end": {"conv1", "bn1", "layer1"}}[anchor]  # of the first step
    moved = [advance(runner, teacher, t) for t in range(9)]
    if anchor == "start":
        assert moved == 3 * [[above], [PARTS - BELOW[2]], [PARTS - BELOW[3]]]
    else:
        assert moved == 3 * [[above], [{"layer2"}], [{"layer3"}]]


def test_steps_that_freeze_nothing_move_layers_below():
    (row,) = cyclic(STEPS, steps=6, lr=0.01)
    runner, teacher, _ = start(row)
    assert [advance(runner, teacher, t) for t in range(6)] == 6 * [[PARTS]]


def test_a_frozen_term_applies_to_all_terms_of_its_update():
    """The labels would move everything: with step 2 not what lies below, with steps 2 and 3 what lies below either."""
    updates = [
        Update(task="labels", transfer=FROZEN[1]),
        Update(task="labels", transfer=(FROZEN[2], FROZEN[1])),
        Update(task="labels", transfer=(STEPS[1], FSP())),
        Update(task="labels", transfer=FROZEN[0]),
    ]
    runner, teacher, _ = start(stage("joint", 8, 0.01, updates))
    everything = PARTS | {"fc"}
    expected = [[everything - BELOW[2]], [everything - BELOW[3]], [everything], [everything]]
    assert [advance(runner, teacher, t) for t in range(8)] == 2 * expected


def test_each_player_moves_its_own_unfrozen_parameters():
    players = {"a": Player(lr=0.01), "b": Player(lr=0.01)}
    row = Stage("two", 4, players, ((Update("a", transfer=FROZEN[1]), Update("b", transfer=STEPS[1])),))
    runner, teacher, _ = start(row)
    assert [advance(runner, teacher, t) for t in range(2)] == 2 * [[PARTS - BELOW[2], PARTS]]


def test_frozen_parameters_have_no_gradient_and_train_again_afterwards():
    (row,) = cyclic([FROZEN[2]], steps=2, lr=0.01)
    student = ResNet(8, width=WIDTHS)
    student.layer3[0].bn2.bias.requires_grad_(False)  # as its maker wanted it
    wanted = {name: p.requires_grad for name, p in student.named_parameters()}
    runner, _, _ = start(row, student)
    trains = {name.split(".")[0] for name, p in student.named_parameters() if p.requires_grad}
    assert trains == {"layer3", "fc"}
    runner.close()
    assert {name: p.requires_grad for name, p in student.named_parameters()} == wanted


@pytest.mark.parametrize(("tap", "parts"), [("relu", ["conv1", "bn1"]), ("layer1", ["conv1", "bn1", "layer1"])])
def test_parameters_below_a_tap(tap, parts):
    network = ResNet(8, width=WIDTHS).train()
    state, rng = {n: t.clone() for n, t in network.state_dict().items()}, torch.get_rng_state()
    network.bn1.bias.requires_grad_(False)
    found = parameters_below(network, Tap(tap), SHAPE)
    names = {name for name, p in network.named_parameters() if p in found}
    assert names == {name for name, _ in network.named_parameters() if name.split(".")[0] in parts} - {"bn1.bias"}
    assert all(torch.equal(state[n], t) for n, t in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), rng)
    assert parameters_below(network.requires_grad_(False), Tap(tap), SHAPE) == set()


def test_cyclic_counts_all_updates():
    """Update t runs step (t mod 3) + 1, 21 000 in all: as many as FSP's single transfer has."""
    (row,) = cyclic(STEPS, steps=21_000, lr=1e-3)
    runner, _, _ = start(row)
    ran = [runner.module.terms[number][0].term.knowledge.step for t in range(row.steps) for number in runner.slot(t)]
    assert len(ran) == 21_000
    assert ran[:6] == [1, 2, 3, 1, 2, 3]
    assert [ran.count(s) for s in (1, 2, 3)] == [7000] * 3


def test_blocks_run_the_steps_in_order():
    lr = Milestones({0: 1e-3, 11_000: 1e-4, 16_000: 1e-5})
    rows = blocks(STEPS, steps=21_000, lr=lr, optimizer=Optimizer(momentum=0.5))
    assert [row.name for row in rows] == ["transfer-1", "transfer-2", "transfer-3"]
    assert [row.steps for row in rows] == [7000] * 3
    assert [row.updates[0].transfer[0].knowledge for row in rows] == STEPS
    for row in rows:
        assert row.players["student"].lr == Milestones({0: 1e-3, 3667: 1e-4, 5333: 1e-5})
        assert row.players["student"].optimizer == Optimizer(momentum=0.5)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("steps", [7, 20, 21, 100, 32_000])
def test_blocks_divide_all_steps_evenly(count, steps):
    rows = blocks(["fsp"] * count, steps=steps, lr=0.1)
    shares = [row.steps for row in rows]
    assert sum(shares) == steps
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("lr", [Constant(0.1), Cosine(0.1), Milestones({0: 0.1, 12: 0.01, 24: 0.001})])
def test_blocks_run_through_the_whole_schedule(lr):
    """Step t of a third of the length has the learning rate of step 3 t."""
    whole = [lr.at(t, 36) for t in range(36)]
    for row in blocks(STEPS, steps=36, lr=lr):
        assert [row.players["student"].lr.at(t, row.steps) for t in range(row.steps)] == pytest.approx(whole[::3])


def test_blocks_of_a_line_have_its_ends():
    for row in blocks(STEPS, steps=36, lr=Linear((0.1, 0.01))):
        assert [row.players["student"].lr.at(t, row.steps) for t in (0, row.steps - 1)] == pytest.approx([0.1, 0.01])


@pytest.mark.parametrize(("transfers", "steps"), [(STEPS, 2), ([], 5)])
def test_fewer_updates_than_blocks_are_refused(transfers, steps):
    with pytest.raises(RecipeError, match=re.escape(f"{len(transfers)} transfers cannot share {steps} steps")):
        blocks(transfers, steps=steps, lr=0.1)


def recipe(row, net):
    data = Data("digits", batch=32, augment=Augment(shift=1))
    jobs = {
        "teacher": Job(net, alone(2, 0.05), seed=1),
        "student": Job(net, (*row, *alone(2, 0.05)), teacher="teacher"),
    }
    return Recipe("steps", data, jobs)


SHUFFLED = [Dense(step=s, freeze_below=True, shuffle="realisable") for s in (1, 2, 3)]


def test_steps_run_from_a_recipe_and_resume_bit_for_bit(tmp_path):
    given = recipe(cyclic(SHUFFLED, steps=7, lr=0.01), Net("resnet8", {"width": 0.5}))
    path = tmp_path / "given.yaml"
    path.write_text(dump_recipe(given), encoding="utf-8")
    assert load_recipe(path) == given

    whole = fs.train(given, tmp_path / "whole", **PLAIN)
    assert_same(resumed(given, tmp_path / "part", ("student", "transfer", 4)), whole)


def test_blocks_run_from_a_recipe(tmp_path):
    run = fs.train(recipe(blocks(STEPS, steps=4, lr=0.01), Net("resnet8", {"width": 0.5})), tmp_path / "run", **PLAIN)
    assert run.summary["jobs"]["student"]["steps"] == 6


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """BatchNorm normalises by each process's own half, so a network without it is compared."""
    given = recipe(cyclic(SHUFFLED, steps=6, lr=0.05), THREE_SECTIONS)
    runs = [fs.train(given, tmp_path / f"run{devices}", devices=devices, **PLAIN) for devices in (1, 2)]
    assert_near(*runs)


def test_the_ablations_rows_differ_only_in_the_flows():
    recipe = load_recipe("dense-ablation")
    table3 = load_recipe("fsp-table3")
    assert recipe.data == table3.data
    for name in ("teacher", "student_scratch", "student_scratch_total"):
        assert recipe.jobs[name].stages == table3.jobs[name].stages
    assert recipe.jobs["plain"].stages == table3.jobs["fsp"].stages
    rows = {name: recipe.jobs[name] for name in ("plain", "dense", "sequential", "dense_sequential")}
    for job in rows.values():
        transfer, task = job.stages
        assert (job.network, job.teacher, job.start, job.seed) == (Net("resnet8", {"init": "msra"}), "teacher", None, 0)
        assert task == recipe.jobs["student_scratch"].stages[0]
        assert (transfer.steps, transfer.players) == (21_000, rows["plain"].stages[0].players)
    transfers = {
        name: [term.knowledge for u in job.stages[0].updates for term in u.terms] for name, job in rows.items()
    }
    assert transfers["plain"] == [FSP()]
    assert transfers["dense"] == [Dense(weighting="fsp")]
    assert transfers["dense_sequential"] == [Dense(weighting="fsp", step=s, anchor="start") for s in (1, 2, 3)]
    network = ResNet(8)
    pairs = pair_sections(network, network, (3, 32, 32))
    (plain,) = (knowledge.build(pairs) for knowledge in transfers["plain"])
    steps = [knowledge.build(pairs) for knowledge in transfers["sequential"]]
    assert [flow for loss in steps for flow in loss.student_flows] == list(plain.student_flows)
    assert [alpha for loss in steps for alpha in loss.alphas] == pytest.approx(list(plain.alphas), rel=1e-6)
    weights = [[term.weight for term in update.terms] for update in rows["sequential"].stages[0].updates]
    assert weights == [[Constant(3.0)]] * 3
