"""A run that ``distill`` returns knows the files that its caller named; a run that is opened does not."""

import pytest

import flowstill as fs
from support.compared_runs import PLAIN

NETS = """
from torch import nn

def linear(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


def test_the_student_of_a_file_that_the_caller_named_is_built(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    teacher = fs.create("resnet8", num_classes=10, in_channels=1, width=0.5)
    run = fs.distill(teacher, f"{tmp_path / 'nets.py'}:linear", "digits", out=tmp_path / "run", scale=5e-5, **PLAIN)
    assert [type(layer).__name__ for layer in run.student] == ["Flatten", "Linear"]
    assert fs.load_student(run)[0] is not None
    with pytest.raises(fs.RunError, match="trust_code=True"):
        _ = fs.Run.open(tmp_path / "run").student
