"""`distill` with networks as objects: the same as by name, and the objects keep their form."""

import copy

import pytest
import torch
from torch import nn

import flowstill as fs
from flowstill.errors import NetworkError, RunError
from flowstill.nets import save_weights
from support.compared_runs import PLAIN, stop_at, weights
from support.distilling import DATA, SHORT, network, taught


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return taught(tmp_path_factory.mktemp("teacher"))


def test_objects_train_like_networks_by_name(tmp_path, teacher):
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


def test_the_student_is_the_given_module_and_the_teacher_is_unchanged(tmp_path, teacher):
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
    kept = weights(run)
    assert all(torch.equal(value, kept[name]) for name, value in student.state_dict().items())
    assert any(not torch.equal(value, start[name]) for name, value in student.state_dict().items())


def test_a_wrapped_student_is_trained_inside_its_wrapper(tmp_path, teacher):
    student = nn.DataParallel(network())
    run = fs.distill(
        fs.create("resnet8", 10, 1, weights=teacher), student, DATA, "kd", out=tmp_path / "run", scale=SHORT, **PLAIN
    )
    kept = weights(run)
    assert run.student is student
    assert all(torch.equal(value, kept[name]) for name, value in student.module.state_dict().items())


def test_compiled_networks_are_unwrapped(tmp_path, teacher):
    master, student = torch.compile(fs.create("resnet8", 10, 1, weights=teacher)), torch.compile(network())
    run = fs.distill(master, student, DATA, "kd", out=tmp_path / "run", scale=SHORT, **PLAIN)
    assert run.student is student
    kept = weights(run)
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


def test_the_student_alone_starts_from_the_same_object(tmp_path, teacher):
    master = fs.create("resnet8", 10, 1, weights=teacher)
    run = fs.distill(master, network(), DATA, "kd", alone=True, out=tmp_path / "run", scale=SHORT, **PLAIN)
    assert set(run.summary["jobs"]) == {"teacher", "student_alone", "student"}
    assert (run.path / "student_alone.safetensors").exists()


def test_an_interrupted_run_of_objects_continues_bit_for_bit(tmp_path, teacher):
    master = fs.create("resnet8", 10, 1, weights=teacher)
    whole, again, options = network(), network(), {"scale": 2 * SHORT, **PLAIN}
    fs.distill(master, whole, DATA, "fsp", out=tmp_path / "whole", **options)
    untouched = copy.deepcopy(again.state_dict())
    stop = stop_at(("student", "task", 3))
    with pytest.raises(KeyboardInterrupt):
        fs.distill(master, again, DATA, "fsp", out=tmp_path / "cut", on_step=stop, **options)
    assert all(torch.equal(value, untouched[name]) for name, value in again.state_dict().items())
    fs.distill(master, again, DATA, "fsp", out=tmp_path / "cut", resume=True, **options)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())


def test_another_object_is_not_resumed(tmp_path, teacher):
    master = fs.create("resnet8", 10, 1, weights=teacher)
    stop = stop_at(("student", "joint", 1))
    with pytest.raises(KeyboardInterrupt):
        fs.distill(master, network(), DATA, "kd", out=tmp_path / "run", scale=SHORT, on_step=stop, **PLAIN)
    with pytest.raises(RunError, match=r"'jobs\.student' differs"):
        fs.distill(master, network(2.0), DATA, "kd", out=tmp_path / "run", scale=SHORT, resume=True, **PLAIN)


def test_another_teacher_is_detected_on_resume(tmp_path, teacher):
    """The same network with other weights, as an object and in a file, also where all is trained."""
    given = fs.create("resnet8", 10, 1, weights=teacher)
    master, file = copy.deepcopy(given), tmp_path / "teacher.safetensors"
    save_weights(master, file)
    stop, options = stop_at(("student", "joint", 1)), {"scale": SHORT, **PLAIN}
    with pytest.raises(KeyboardInterrupt):
        fs.distill(master, network(), DATA, "kd", out=tmp_path / "object", on_step=stop, **options)
    named = ("resnet8", "resnet8", DATA, "kd")
    fs.distill(*named, teacher_weights=file, out=tmp_path / "file", **options)
    with torch.no_grad():
        next(master.parameters()).mul_(2)
    save_weights(master, file)
    with pytest.raises(RunError, match=r"another 'teacher': the object holds other weights.*another out="):
        fs.distill(master, network(), DATA, "kd", out=tmp_path / "object", resume=True, **options)
    with pytest.raises(RunError, match=rf"another 'teacher': the file '{file}' holds other weights"):
        fs.distill(*named, teacher_weights=file, out=tmp_path / "file", resume=True, **options)
    save_weights(fs.create("resnet14", 10, 1), file)
    with pytest.raises(RunError, match="holds other weights"):
        fs.distill(*named, teacher_weights=file, out=tmp_path / "file", resume=True, **options)
    save_weights(given, file)
    fs.distill(given, network(), DATA, "kd", out=tmp_path / "object", resume=True, **options)
    fs.distill(*named, teacher_weights=file, out=tmp_path / "file", resume=True, **options)


def test_a_weights_file_beside_an_object_takes_precedence(tmp_path, teacher):
    fresh, options = fs.create("resnet8", 10, 1), {"set": [f"teacher.weights={teacher}"], "scale": SHORT, **PLAIN}
    fs.distill(copy.deepcopy(fresh), network(), DATA, "kd", out=tmp_path, **options)
    fs.distill(fresh, network(), DATA, "kd", out=tmp_path, resume=True, **options)


def test_a_trained_object_is_not_trained_alone_afterwards(tmp_path, teacher):
    master, student = fs.create("resnet8", 10, 1, weights=teacher), network()
    fs.distill(master, student, DATA, "kd", out=tmp_path / "run", scale=SHORT, **PLAIN)
    with pytest.raises(RunError, match="started without alone=True"):
        fs.distill(master, student, DATA, "kd", out=tmp_path / "run", scale=SHORT, alone=True, resume=True, **PLAIN)


def test_a_run_of_objects_opened_alone_says_what_it_needs(tmp_path, teacher):
    run = fs.distill(
        fs.create("resnet8", 10, 1, weights=teacher), network(), DATA, "kd", out=tmp_path / "run", scale=SHORT, **PLAIN
    )
    with pytest.raises(NetworkError, match=r"'object:ResNet' was given as a Python object.*load_weights"):
        fs.Run.open(run.path).student  # noqa: B018
