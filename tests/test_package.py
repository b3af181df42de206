"""The package's public face: names exist, load lazily, and start quickly."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import flowstill

SOURCE = Path(flowstill.__file__)


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False, **options
    )


def test_the_package_and_the_help_load_nothing_heavy():
    imports = "import sys, flowstill, flowstill.cli; dir(flowstill)"
    result = run("-c", f"{imports}; flowstill.cli.main(['train', '--help']); print(*sys.modules)")
    assert "--resume" in result.stdout
    heavy = {"torch", "torchvision", "timm", "datasets", "numpy", "pandas", "matplotlib", "sklearn", "lightning_fabric"}
    assert not heavy & set(result.stdout.splitlines()[-1].split())
    result = run("-c", f"{imports}; print(*sys.modules)")
    assert not (heavy | {"pydantic", "yaml", "jinja2"}) & set(result.stdout.split())


def test_python_m_flowstill_is_the_command_line(tmp_path):
    result = run("-m", "flowstill", "trian", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: No such command 'trian'")
    assert run("-m", "flowstill", "--version").stdout == f"flowstill {flowstill.__version__}\n"


def test_every_public_name_exists():
    for name in flowstill.__all__:
        assert getattr(flowstill, name) is not None
        assert name in dir(flowstill)
    for name in (
        "fsp_matrix",
        "FSP",
        "Tapped",
        "find_sections",
        "pair_sections",
        "create",
        "load_recipe",
        "train",
        "Run",
    ):
        assert name in flowstill.__all__
    with pytest.raises(AttributeError, match="trian"):
        _ = flowstill.trian


def test_type_checkers_see_the_same_names():
    tree = ast.parse(SOURCE.read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == flowstill._HOME
    assert set(flowstill.__all__) == {*seen, "__version__"}


def test_all_recipes_go_into_the_wheel():
    package = SOURCE.parent
    globs = tomllib.loads((package.parents[1] / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {path for pattern in globs["flowstill"] for path in package.glob(pattern)}
    recipes = set((package / "papers").rglob("*.yaml"))
    assert len(recipes) > 25
    assert recipes <= packaged


def test_the_version_is_defined_in_one_place(tmp_path):
    project = tomllib.loads((SOURCE.parents[2] / "pyproject.toml").read_text())["project"]
    assert flowstill.__version__ == version("flowstill") == project["version"]
    recipe = flowstill.load_recipe("digits", scale=0.01)
    summary = flowstill.train(recipe, tmp_path / "run", device="cpu", precision="32", progress=False).summary
    assert summary["versions"]["flowstill"] == flowstill.__version__
    literal = re.compile(rf"(?<![\d.]){re.escape(flowstill.__version__)}(?![\d.])")
    assert [path for path in SOURCE.parent.rglob("*.py") if literal.search(path.read_text(encoding="utf-8"))] == []
