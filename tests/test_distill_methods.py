"""The methods that `distill` knows by name: budgets, steps, and that each of them trains."""

import pytest

import flowstill as fs
from flowstill.cli import main
from flowstill.data.spec import Data
from flowstill.recipes.distillation import distillation
from flowstill.recipes.methods import usual_data
from flowstill.recipes.recipe import Job, Recipe
from flowstill.transfer.methods import METHODS, find_method
from flowstill.transfer.procedures import alone
from flowstill.transfer.rules import AdaptiveClip
from support.compared_runs import PLAIN, rows

NAMES = [
    "fsp",
    "fsp-joint",
    "fsp-shuffled",
    "dense",
    "dense-sequential",
    "svd",
    "svd-joint",
    "kr",
    "kr-dense",
    "kr-kdgan",
    "kdgan",
    "fitnet",
    "fitnet3",
    "kd",
    "nst",
    "at",
]


def test_the_documented_methods_exist_and_describe_themselves(capsys):
    assert sorted(METHODS) == sorted(NAMES)
    assert main(["list", "methods"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines if line and line[0] in NAMES] == sorted(NAMES)
    for method in METHODS.values():
        assert all((method.transfers, method.needs, method.paper))


@pytest.mark.parametrize("name", NAMES)
def test_all_methods_have_the_same_updates_on_the_task(name):
    stages = find_method(name).stages(3)
    updates = [stage.steps for stage in stages if any(update.task for update in stage.updates)]
    assert updates == [64_000]


def test_budgets_are_the_papers():
    before = {name: [stage.steps for stage in find_method(name).stages(3)][:-1] for name in NAMES}
    flows = [name for name in NAMES if before[name] == [21_000]]
    assert flows == ["fsp", "fsp-shuffled", "dense", "dense-sequential", "svd"]
    assert [name for name in NAMES if before[name] == [35_000]] == ["fitnet", "fitnet3"]
    lr = find_method("fsp").stages(3)[0].players["student"].lr
    assert [lr.at(step, 21_000) for step in (0, 10_999, 11_000, 15_999, 16_000)] == [1e-3, 1e-3, 1e-4, 1e-4, 1e-5]


def test_joint_methods_of_the_clipping_paper_clip():
    rules = {name: [update.rule for stage in find_method(name).stages(3) for update in stage.updates] for name in NAMES}
    clipped = [name for name in NAMES if any(isinstance(rule, AdaptiveClip) for rule in rules[name])]
    assert clipped == ["fsp-joint", "svd-joint"]


def test_there_are_as_many_sequential_steps_as_sections():
    assert [len(find_method("dense-sequential").stages(n)[0].cycle) for n in (1, 3, 4)] == [1, 3, 4]
    recipe = distillation("resnet26", "resnet8", "cifar10", "dense-sequential", teacher_weights="none.pt")
    steps = [update.transfer[0].knowledge.step for update in recipe.jobs["student"].stages[0].updates]
    assert steps == [1, 2, 3]


def test_steps_are_counted_after_changes_to_the_networks():
    flow = "{teacher: [layer1, layer2], student: [layer1, layer2]}"
    by_hand = distillation(
        "resnet26", "resnet8", "cifar10", "dense-sequential", teacher_weights="x", set=[f"student.flows=[{flow}]"]
    )
    assert len(by_hand.jobs["student"].stages[0].cycle) == 1
    other = distillation(
        "resnet26", "vgg", "cifar10", "dense-sequential", teacher_weights="x", set=["student.network=resnet8"]
    )
    assert len(other.jobs["student"].stages[0].cycle) == 3


def test_a_vision_transformer_can_teach_by_its_predictions():
    """Soft logits need no sections, so the teacher may be anything."""
    pytest.importorskip("timm")
    recipe = distillation(
        "timm:vit_tiny_patch16_224", "resnet8", Data("digits", size=224, channels=3), "kd", teacher_weights="x"
    )
    assert not any(stage.reads_sections for stage in recipe.jobs["student"].stages)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The weights of a ResNet-26 that reads digits."""
    recipe = Recipe("teacher", usual_data("digits"), {"teacher": Job("resnet26", alone(150, 0.1))})
    run = fs.train(recipe, tmp_path_factory.mktemp("reader") / "run", **PLAIN)
    assert run.summary["jobs"]["teacher"]["accuracy"] > 90
    return run.path / "teacher.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_method_trains_resnet8_from_resnet26_on_digits(tmp_path, reader, name):
    """By command; far above chance, and the loss on the task falls."""
    out = tmp_path / "run"
    command = [
        "distill",
        "--teacher",
        "resnet26",
        "--teacher-weights",
        str(reader),
        "--student",
        "resnet8",
        "--data",
        "digits",
        "--method",
        name,
        "--scale",
        "0.0015",
        "--out",
        str(out),
        "--device",
        "cpu",
        "--precision",
        "32",
    ]
    if name == "at":
        # Its beta is for maps of 32x32 images; on 8x8 ones the last has 4 positions, and would outweigh the task.
        command += ["--set", "student.stages.joint.transfer.attention.beta=50"]
    assert main(command) == 0
    run = fs.Run.open(out)
    task = [float(row[4]) for row in rows(run) if (row[0], row[3]) == ("student", "train/labels")]
    assert task[-1] < task[0] / 2
    assert run.summary["jobs"]["student"]["accuracy"] > 80
