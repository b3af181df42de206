"""A method by its name: from the command line and from Python, with networks by name and as objects."""

import copy
import csv
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import flowstill as fs
from flowstill.cli import main
from flowstill.data.batch import Batch
from flowstill.data.spec import Augment, Data
from flowstill.engine.distillation import distillation
from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.engine.runner import StageRunner
from flowstill.engine.teacher import Teacher
from flowstill.errors import FlowstillError, NetworkError, RecipeError, RunError
from flowstill.knowledge.base import Setting
from flowstill.nets import save_weights
from flowstill.recipes.methods import METHODS, find_method, usual_data
from flowstill.recipes.schema import Job, Recipe
from flowstill.reports.results import verdict
from flowstill.transfer.procedures import alone, joint, two_stage
from flowstill.transfer.stages import AdaptiveClip, Optimizer, Stage

NAMES = [
    "fsp", "fsp-joint", "fsp-shuffled", "dense", "dense-sequential", "svd", "svd-joint", "kr", "kr-dense", "kr-kdgan",
    "kdgan", "fitnet", "fitnet3", "kd", "nst", "at",
]  # fmt: skip
DATA = Data("digits", batch=32, augment=Augment(shift=1))
PLAIN = {"device": "cpu", "precision": "32", "progress": False}
SHORT = 1 / 16_000  # four updates on the task


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The weights of a teacher that has learned a little."""
    run = fs.train(
        Recipe("teacher", DATA, {"teacher": Job("resnet8", alone(20, 0.1))}),
        tmp_path_factory.mktemp("t") / "run",
        **PLAIN,
    )
    return run.path / "teacher.safetensors"


def network(width=1.0):
    torch.manual_seed(3)
    return fs.create("resnet8", 10, 1, **({} if width == 1 else {"width": width}))


def test_the_methods_are_those_that_are_promised_and_each_says_what_it_is(capsys):
    assert list(METHODS) == NAMES
    assert main(["list", "methods"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines if line and line[0] in NAMES] == NAMES
    for method in METHODS.values():
        assert all((method.transfers, method.needs, method.paper))


def test_an_unknown_method_is_refused_with_the_nearest(capsys, tmp_path, teacher):
    command = [
        "distill",
        "--teacher",
        "resnet8",
        "--teacher-weights",
        str(teacher),
        "--student",
        "resnet8",
        "--data",
        "digits",
    ]
    assert main([*command, "--method", "fps", "--out", str(tmp_path / "run")]) == 2
    assert "There is no method 'fps'. Did you mean 'fsp'?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", NAMES)
def test_all_methods_have_the_same_updates_on_the_task(name):
    stages = find_method(name).stages(3)
    updates = [stage.steps for stage in stages if any(update.task for update in stage.updates)]
    assert updates == [64_000]


def test_budgets_are_the_papers():
    before = {name: [stage.steps for stage in find_method(name).stages(3)][:-1] for name in NAMES}
    assert [name for name in NAMES if before[name] == [21_000]] == [
        "fsp",
        "fsp-shuffled",
        "dense",
        "dense-sequential",
        "svd",
    ]
    assert [name for name in NAMES if before[name] == [35_000]] == ["fitnet", "fitnet3"]
    lr = find_method("fsp").stages(3)[0].players["student"].lr
    assert [lr.at(step, 21_000) for step in (0, 10_999, 11_000, 15_999, 16_000)] == [1e-3, 1e-3, 1e-4, 1e-4, 1e-5]


def test_joint_methods_of_the_clipping_paper_clip():
    rules = {name: [update.rule for stage in find_method(name).stages(3) for update in stage.updates] for name in NAMES}
    clipped = [name for name in NAMES if any(isinstance(rule, AdaptiveClip) for rule in rules[name])]
    assert clipped == ["fsp-joint", "svd-joint"]


def test_sequential_steps_are_as_many_as_the_sections():
    assert [len(find_method("dense-sequential").stages(n)[0].cycle) for n in (1, 3, 4)] == [1, 3, 4]
    recipe = distillation("resnet26", "resnet8", "cifar10", "dense-sequential", teacher_weights="none.pt")
    steps = [update.transfer[0].knowledge.step for update in recipe.jobs["student"].stages[0].updates]
    assert steps == [1, 2, 3]


def test_the_usual_augmentation_is_used_unless_the_data_say_otherwise():
    assert usual_data("cifar10").augment == Augment(crop=4)
    own = distillation("resnet26", "resnet8", DATA, "kd", teacher_weights="none.pt")
    assert own.data == DATA
    named = distillation("resnet26", "resnet8", "digits", "kd", teacher_weights="none.pt")
    assert named.data.augment == Augment(shift=1)


def test_the_command_trains_and_shows_the_student_beside_itself_alone(tmp_path, capsys, teacher):
    out = tmp_path / "run"
    command = ["distill", "--teacher", "resnet8", "--teacher-weights", str(teacher), "--student", "resnet8", "--data", "digits",
               "--method", "fsp", "--scale", str(SHORT), "--alone", "--labels", "100", "--set", "data.batch=32",
               "--out", str(out), "--device", "cpu", "--precision", "32"]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    assert {"teacher", "student_alone", "student"} <= rows.keys()
    run = fs.Run.open(out)
    assert run.finished
    jobs = run.summary["jobs"]
    assert [jobs[name]["labels"] for name in ("student_alone", "student")] == [100, 100]
    assert jobs["student"]["steps"] == jobs["student_alone"]["steps"] == 5  # 4 + 1, at the smallest scale
    assert main([*command, "--resume"]) == 0
    assert "finished already" in capsys.readouterr().out


def test_a_teacher_that_has_learned_nothing_is_refused(tmp_path, capsys):
    command = [
        "distill",
        "--teacher",
        "resnet8",
        "--student",
        "resnet8",
        "--data",
        "digits",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "teacher" in error
    assert "--teacher-weights" in error
    assert not (tmp_path / "run").exists()


def test_objects_train_as_networks_by_name_do(tmp_path, teacher):
    """The same weights, whether the networks come by name and file or as objects."""
    student = network()
    save_weights(student.state_dict(), tmp_path / "start.safetensors")
    master = fs.create("resnet8", 10, 1, weights=teacher)
    options = {"scale": SHORT, "seed": 5, **PLAIN}
    run = fs.distill(master, student, DATA, "fsp", out=tmp_path / "objects", **options)
    start = f"student.start={{weights: {tmp_path / 'start.safetensors'}}}"
    named = fs.distill(
        "resnet8", "resnet8", DATA, "fsp", teacher_weights=teacher, set=[start], out=tmp_path / "names", **options
    )
    assert run.student is student
    ours, theirs = student.state_dict(), named.student.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not student.training


def test_the_student_is_the_bare_module_that_went_in_and_the_teacher_stays(tmp_path, teacher):
    master, student = fs.create("resnet8", 10, 1, weights=teacher).train(), network()
    before, start = copy.deepcopy(master.state_dict()), copy.deepcopy(student.state_dict())
    modules = [type(module) for module in student.modules()]
    run = fs.distill(master, student, DATA, "svd-joint", out=tmp_path / "run", scale=SHORT, **PLAIN)
    assert run.student is student
    assert run.network("teacher") is master
    assert [type(module) for module in student.modules()] == modules
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())
    assert all(torch.equal(value, before[name]) for name, value in master.state_dict().items())
    assert master.training
    assert all(parameter.requires_grad for parameter in master.parameters())
    kept = load_file(run.path / "student.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in student.state_dict().items())
    assert any(not torch.equal(value, start[name]) for name, value in student.state_dict().items())


def test_a_wrapped_student_is_trained_inside_its_wrapper(tmp_path, teacher):
    student = nn.DataParallel(network())
    run = fs.distill(
        fs.create("resnet8", 10, 1, weights=teacher), student, DATA, "kd", out=tmp_path / "run", scale=SHORT, **PLAIN
    )
    kept = load_file(run.path / "student.safetensors")
    assert run.student is student
    assert all(torch.equal(value, kept[name]) for name, value in student.module.state_dict().items())


def test_the_student_alone_starts_from_the_same_object(tmp_path, teacher):
    student = network()
    run = fs.distill(
        fs.create("resnet8", 10, 1, weights=teacher),
        student,
        DATA,
        "kd",
        alone=True,
        out=tmp_path / "run",
        scale=SHORT,
        **PLAIN,
    )
    assert set(run.summary["jobs"]) == {"teacher", "student_alone", "student"}
    assert (run.path / "student_alone.safetensors").exists()


def test_an_interrupted_run_of_objects_goes_on_bit_for_bit(tmp_path, teacher):
    master = fs.create("resnet8", 10, 1, weights=teacher)
    whole, again = network(), network()
    fs.distill(master, whole, DATA, "fsp", out=tmp_path / "whole", scale=2 * SHORT, **PLAIN)

    def interrupt(*here):
        if here == ("student", "task", 3):
            signal.raise_signal(signal.SIGINT)

    untouched = copy.deepcopy(again.state_dict())
    with pytest.raises(KeyboardInterrupt):
        fs.distill(master, again, DATA, "fsp", out=tmp_path / "cut", scale=2 * SHORT, on_step=interrupt, **PLAIN)
    assert all(torch.equal(value, untouched[name]) for name, value in again.state_dict().items())
    fs.distill(master, again, DATA, "fsp", out=tmp_path / "cut", scale=2 * SHORT, resume=True, **PLAIN)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_run_of_objects_tells_what_it_needs_when_it_is_opened_alone(tmp_path, teacher):
    run = fs.distill(
        fs.create("resnet8", 10, 1, weights=teacher), network(), DATA, "kd", out=tmp_path / "run", scale=SHORT, **PLAIN
    )
    with pytest.raises(NetworkError, match=r"'object:ResNet' was given as a Python object.*load_weights"):
        fs.Run.open(run.path).student  # noqa: B018


def test_another_object_is_not_resumed(tmp_path, teacher):
    master = fs.create("resnet8", 10, 1, weights=teacher)

    def interrupt(*here):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fs.distill(master, network(), DATA, "kd", out=tmp_path / "run", scale=SHORT, on_step=interrupt, **PLAIN)
    with pytest.raises(RunError, match="'jobs' differs"):
        fs.distill(master, network(2.0), DATA, "kd", out=tmp_path / "run", scale=SHORT, resume=True, **PLAIN)


def test_a_student_of_other_classes_is_refused_before_anything_is_made(tmp_path, teacher):
    student = fs.create("resnet8", 7, 1)
    with pytest.raises(NetworkError, match=r"job 'student': object:ResNet gives .*7.*10 classes.*head of 10"):
        fs.distill(fs.create("resnet8", 10, 1, weights=teacher), student, DATA, "fsp", out=tmp_path / "run", **PLAIN)
    assert not (tmp_path / "run").exists()


def test_weights_beside_a_teacher_that_is_an_object_are_refused(teacher):
    with pytest.raises(RecipeError, match="given as an object has its weights"):
        distillation(network(), "resnet8", DATA, "kd", teacher_weights=teacher)


def test_a_row_of_stages_is_a_method_too(tmp_path, teacher):
    stages = two_stage(fs.SVD(rank=2), transfer_steps=2, transfer_lr=0.01, task_steps=2, task_lr=0.05)
    assert all(isinstance(stage, Stage) for stage in stages)
    run = fs.distill("resnet8", "resnet8", DATA, stages, teacher_weights=teacher, out=tmp_path / "run", **PLAIN)
    assert run.summary["jobs"]["student"]["steps"] == 4


def test_a_vision_transformer_can_teach_by_its_predictions():
    """Soft logits need no sections, so the teacher may be anything."""
    pytest.importorskip("timm")
    recipe = distillation(
        "timm:vit_tiny_patch16_224", "resnet8", Data("digits", size=224, channels=3), "kd", teacher_weights="x"
    )
    assert not any(stage.reads_sections for stage in recipe.jobs["student"].stages)


def seven(classes=7):
    torch.manual_seed(8)
    return fs.create("resnet8", classes, 1)


@pytest.mark.parametrize("method", ["fsp", "at"])
def test_a_teacher_of_other_classes_teaches_what_is_no_prediction(tmp_path, method):
    """It is not measured on classes that it does not know."""
    save_weights(seven().state_dict(), tmp_path / "seven.safetensors")
    for number, (teacher, more) in enumerate(
        ((seven(), {}), ("resnet8", {"teacher_weights": tmp_path / "seven.safetensors"}))
    ):
        run = fs.distill(teacher, network(), DATA, method, out=tmp_path / str(number), scale=SHORT, **more, **PLAIN)
        assert "accuracy" not in run.summary["jobs"]["teacher"]
        assert "accuracy" in run.summary["jobs"]["student"]
        assert run.finished
        (sentence,) = verdict(run)
        assert "the teacher has" not in sentence


@pytest.mark.parametrize("method", ["kd", "kdgan", "fitnet"])
def test_predictions_of_other_classes_are_refused(tmp_path, method):
    save_weights(seven().state_dict(), tmp_path / "seven.safetensors")
    said = r"job 'student': stage '.*': (soft_logits|kdgan) reads the predictions of 'teacher', but .*7.*Fine-tune the teacher"
    with pytest.raises(RecipeError, match=said):
        fs.distill(seven(), network(), DATA, method, out=tmp_path / "run", **PLAIN)
    with pytest.raises(RecipeError, match=said):
        fs.distill(
            "resnet8",
            "resnet8",
            DATA,
            method,
            teacher_weights=tmp_path / "seven.safetensors",
            out=tmp_path / "run",
            **PLAIN,
        )
    assert not (tmp_path / "run").exists()


def test_what_is_transferred_comes_from_all_images_where_labels_are_few(tmp_path, teacher, monkeypatch):
    """Also where task and transfer share an update."""
    seen = set()
    plain = Teacher.read

    def spy(self, images, losses):
        reading = plain(self, images, losses)
        if reading is not None:
            seen.update(image.numpy().tobytes() for image in images)
        return reading

    monkeypatch.setattr(Teacher, "read", spy)
    still = Data("digits", batch=32)
    fs.distill(
        "resnet8",
        "resnet8",
        still,
        "kd",
        teacher_weights=teacher,
        labels=20,
        scale=5 * SHORT,
        out=tmp_path / "a",
        **PLAIN,
    )
    assert len(seen) > 300
    recipe = distillation("resnet8", "resnet8", replace(still, unlabelled=3), "kd", teacher_weights=teacher, labels=20)
    assert recipe.data.unlabelled == 3  # who says how many gets so many


def test_compiled_networks_are_taken_for_what_they_are(tmp_path, teacher):
    master, student = torch.compile(fs.create("resnet8", 10, 1, weights=teacher)), torch.compile(network())
    run = fs.distill(master, student, DATA, "kd", out=tmp_path / "run", scale=SHORT, **PLAIN)
    assert run.student is student
    kept = load_file(run.path / "student.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in student._orig_mod.state_dict().items())


@pytest.mark.parametrize(
    ("dtype", "role"), [(torch.float64, "student"), (torch.float16, "teacher"), (torch.bfloat16, "teacher")]
)
def test_networks_of_another_precision_are_trained_in_float32_and_keep_theirs(tmp_path, teacher, dtype, role):
    networks = {"teacher": fs.create("resnet8", 10, 1, weights=teacher), "student": network()}
    networks[role].to(dtype)
    run = fs.distill(*networks.values(), DATA, "fsp", out=tmp_path / "run", scale=SHORT, **PLAIN)
    assert next(networks[role].parameters()).dtype == dtype
    assert next(run.student.parameters()).dtype == (dtype if role == "student" else torch.float32)


def frozen():
    return network().requires_grad_(False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"student": frozen}, "player 'student' moves student, adapters, but all their parameters are frozen"),
        ({"student": 5}, "the student is a network or its name .*, not 5"),
        ({"teacher": "."}, "the teacher '.' is a file or a folder, not a network's name.*--teacher-weights FILE"),
        ({"method": []}, "method is an empty row of stages"),
        ({"method": ""}, "There is no method ''. See"),
        ({"set": "data.batch=x"}, "data.batch: expected a whole number, got 'x'"),
        ({"set": ["teacher.about=x"], "teacher_weights": None}, "'resnet8' has learned nothing.*--teacher-weights"),
        ({"labels": 3}, "'labels' is 3, but 'digits' has 10 classes"),
    ],
)
def test_bad_input_is_named_before_anything_is_made(tmp_path, teacher, arguments, said):
    given = {"teacher": "resnet8", "student": "resnet8", "data": DATA, "teacher_weights": teacher, **arguments}
    given["student"] = given["student"]() if given["student"] is frozen else given["student"]
    with pytest.raises(FlowstillError, match=said):
        fs.distill(**given, out=tmp_path / "run", **PLAIN)
    assert not (tmp_path / "run").exists()


def test_one_object_cannot_be_both(teacher):
    both = network()
    with pytest.raises(RecipeError, match=r"one object, which would be overwritten; give a copy\.deepcopy"):
        distillation(both, both, DATA, "kd")


def test_one_stage_is_a_method_too(teacher):
    (stage,) = alone(3, 0.1)
    assert distillation("resnet8", "resnet8", DATA, stage, teacher_weights=teacher).jobs["student"].stages == (stage,)


def test_steps_are_counted_in_the_networks_that_changes_make():
    flow = "{teacher: [layer1, layer2], student: [layer1, layer2]}"
    by_hand = distillation(
        "resnet26", "resnet8", "cifar10", "dense-sequential", teacher_weights="x", set=[f"student.flows=[{flow}]"]
    )
    assert len(by_hand.jobs["student"].stages[0].cycle) == 1
    other = distillation(
        "resnet26", "vgg", "cifar10", "dense-sequential", teacher_weights="x", set=["student.network=resnet8"]
    )
    assert len(other.jobs["student"].stages[0].cycle) == 3


def test_regressors_move_under_a_clipping_rule():
    """They belong to the transfer, whose gradient the rule holds against the task's on the student alone."""
    torch.manual_seed(0)
    teacher, student = fs.create("resnet8", 10, 1).requires_grad_(False).eval(), fs.create("resnet8", 10, 1, width=0.5)
    (stage,) = joint("hints", steps=3, lr=0.1, rule=AdaptiveClip(), optimizer=Optimizer(weight_decay=0.0))
    pairs = fs.pair_sections(teacher, student, (1, 8, 8))
    runner = StageRunner(
        make_fabric("cpu", 1, Precision()), student, stage, pairs, Setting(teacher, student, (1, 8, 8), 10)
    )
    (regressor,) = runner.learner.parts()["adapters"]
    before = {name: value.clone() for name, value in regressor.state_dict().items()}
    batch = Batch(torch.randn(6, 1, 8, 8), torch.arange(6), torch.arange(6), torch.zeros(6, dtype=torch.long))
    losses = runner.losses([0])
    runner.update(0, batch, Teacher(make_fabric("cpu", 1, Precision()), teacher).read(batch.images, losses), 0)
    assert all(not torch.equal(value, before[name]) for name, value in regressor.state_dict().items())


def test_a_fresh_head_is_drawn_before_its_stage(tmp_path, teacher):
    """The rest goes on from the stage before."""
    made = two_stage("fsp", transfer_steps=2, transfer_lr=0.01, task_steps=1, task_lr=0.0)
    kept = {}
    for fresh in (False, True):
        stages = (made[0], replace(made[1], fresh_head=fresh))
        run = fs.distill(
            "resnet8", "resnet8", DATA, stages, teacher_weights=teacher, out=tmp_path / str(fresh), **PLAIN
        )
        kept[fresh] = load_file(run.path / "student.safetensors")
    weights = {name for name in kept[True] if name.endswith(("weight", "bias"))}
    assert {name for name in weights if not torch.equal(kept[True][name], kept[False][name])} == {
        "fc.weight",
        "fc.bias",
    }


def digits_teacher(folder):
    """A ResNet-26 that reads digits."""
    recipe = Recipe("teacher", usual_data("digits"), {"teacher": Job("resnet26", alone(150, 0.1))})
    return fs.train(recipe, folder, **PLAIN)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    run = digits_teacher(tmp_path_factory.mktemp("reader") / "run")
    assert run.summary["jobs"]["teacher"]["accuracy"] > 90
    return run.path / "teacher.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_method_trains_resnet8_from_resnet26_on_digits(tmp_path, reader, name):
    """By command; far above chance, and the loss on the task falls."""
    out = tmp_path / "run"
    command = ["distill", "--teacher", "resnet26", "--teacher-weights", str(reader), "--student", "resnet8", "--data", "digits",
               "--method", name, "--scale", "0.0015", "--out", str(out), "--device", "cpu", "--precision", "32"]  # fmt: skip
    if (
        name == "at"
    ):  # its beta is for maps of 32x32 images; on 8x8 ones the last has 4 positions, and would outweigh the task
        command += ["--set", "student.stages.joint.transfer.attention.beta=50"]
    assert main(command) == 0
    run = fs.Run.open(out)
    with open(out / "metrics.csv", newline="") as file:
        rows = [row for row in csv.reader(file) if row[0] == "student"]
    task = [float(row[4]) for row in rows if row[3] == "train/labels"]
    assert task[-1] < task[0] / 2
    assert run.summary["jobs"]["student"]["accuracy"] > 80
