"""The README and CONTRIBUTING show code that works."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import flowstill as fs
from flowstill.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(text: str, language: str, part: str) -> str:
    """The code block that contains ``part``."""
    (found,) = (code for code in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if part in code)
    return found


@pytest.mark.parametrize(
    ("text", "metric", "used"), [(README, "train/norms", "norms.py"), (CONTRIBUTING, "train/attention", "mine.py")]
)
def test_a_custom_method_trains_and_is_evaluated(
    text: str, metric: str, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(used).write_text(block(text, "python", "@fs.register_method"))
    Path("recipe.yaml").write_text(block(text, "yaml", "uses:"))
    recipe = fs.load_recipe("recipe.yaml", scale=0.00005, trust_code=True)
    run = fs.train(recipe, "run", device="cpu", precision="32", progress=False)
    assert next(row.value for row in run.metrics() if row.metric == metric) > 0
    assert set(fs.evaluate("run", device="cpu", trust_code=True)) == {"teacher", "student"}


def test_the_entry_point_in_contributing_is_imported() -> None:
    from flowstill.schema.registry import GROUP

    project = tomllib.loads(block(CONTRIBUTING, "toml", "[project]"))
    assert project["project"]["entry-points"][GROUP]["half"] in project["tool"]["setuptools"]["py-modules"]


def test_the_import_order_in_contributing_is_the_linted_one() -> None:
    (said,) = re.findall(r"^`(cli > .*)`\.$", CONTRIBUTING, re.MULTILINE)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = (contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers")
    assert said == " > ".join(layers).replace("flowstill.", "")


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_every_folder_is_described(text: str) -> None:
    folders = {
        path.parent.relative_to(ROOT) for name in ("tests", "docs", "benchmarks") for path in (ROOT / name).rglob("*.*")
    }
    own = {path for path in folders if len(path.parts) > 1 and "__pycache__" not in path.parts}
    mirrored = {path for path in own if (ROOT / "src" / "flowstill" / path.name).is_dir() and path.parts[0] == "tests"}
    described = set(re.findall(r"(?:`|\]\()([a-z_/]+)/(?:README\.md|`)", text))
    assert [str(path) for path in sorted(own - mirrored) if str(path) not in described] == []
    packages = [path.parent.name for path in (ROOT / "src" / "flowstill").glob("*/__init__.py")]
    assert [name for name in packages if f"| `{name}/` | " not in text] == []


@pytest.mark.parametrize("number", range(3))
def test_commands_without_training_run(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.findall(r"^flowstill (list|inspect|check) ([^#\n]*)", README, re.MULTILINE)
    command, rest = lines[number]
    assert main([command, *rest.split("|")[0].split()]) == 0
    assert capsys.readouterr().out
