"""What the README shows is what works."""

import re
from pathlib import Path

import pytest

import flowstill as fs
from flowstill.errors import RecipeError
from flowstill.schema.code import import_file

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
IMPORTS = """
from typing import ClassVar, Literal
from flowstill import Knowledge, Loss, Pairs, Setting, register, register_method, specification
"""


def test_the_method_of_ones_own_trains(tmp_path):
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class NormsLoss" in block)
    (tmp_path / "readme_norms.py").write_text(IMPORTS + code)
    import_file(tmp_path / "readme_norms.py", RecipeError)
    recipe = fs.load_recipe("digits", scale=0.01, set=["student.stages.transfer.transfer=norms"])
    run = fs.train(recipe, tmp_path / "run", device="cpu", precision="32", progress=False)
    assert next(row.value for row in run.metrics() if row.metric == "train/norms") > 0


@pytest.mark.parametrize("number", range(3))
def test_commands_that_compute_nothing_run(number, capsys):
    from flowstill.cli import main

    lines = re.findall(r"^flowstill (list|inspect|check) ([^#\n]*)", README, re.MULTILINE)
    command, rest = lines[number]
    assert main([command, *rest.split("|")[0].split()]) == 0
    assert capsys.readouterr().out
