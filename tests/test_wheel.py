"""The wheel and the source archive are complete, and the wheel runs in an environment without the sources."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from flowstill import __version__

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src" / "flowstill"


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that sees no sources of this checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def only(paths: Sequence[Path]) -> Path:
    (path,) = paths
    return path


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The folder with the source archive and the wheel that is built from it, nothing being downloaded."""
    sources, archives = tmp_path_factory.mktemp("sources") / "flowstill", tmp_path_factory.mktemp("archives")
    hidden = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")

    def skipped(folder: str, names: list[str]) -> set[str]:
        outputs = {"runs", "build", "dist"} if Path(folder) == ROOT else set()
        return outputs | set(hidden(folder, names))

    shutil.copytree(ROOT, sources, ignore=skipped)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", archives, sources, cwd=sources)
    return archives


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """A fresh environment with the wheel in it. Its other packages are read from this environment's folders."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home)
    python, wheel = home / "bin" / "python", only(list(archives.glob("*.whl")))
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=home)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    paths = sysconfig.get_paths()
    # A folder named in a .pth file comes last, and its own .pth files, the editable flowstill's too, are not read.
    (packages / "others.pth").write_text(f"{paths['purelib']}\n{paths['platlib']}\n")
    return home


def test_the_wheel_contains_only_the_package(archives):
    wheel = only(list(archives.glob("*.whl")))
    assert wheel.name == f"flowstill-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {p for p in SOURCES.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert {SOURCES.parent / name for name in names if ".dist-info/" not in name} == expected
    assert {"flowstill/py.typed", "flowstill/reports/report.html", "flowstill/papers/printed.yaml"} <= names
    assert f"flowstill-{__version__}.dist-info/licenses/LICENSE" in names


def test_the_source_archive_can_be_tested(archives):
    root = f"flowstill-{__version__}"
    with tarfile.open(archives / f"{root}.tar.gz") as archive:
        names = {name.removeprefix(f"{root}/") for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "constraints.txt", "Makefile", "conftest.py"} <= names
    for folder in ("src/flowstill", "tests", "docs", "benchmarks"):
        files = {p for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix != ".pyc"}
        assert {str(p.relative_to(ROOT)) for p in files} <= names


def test_the_installed_package_matches_the_wheel(installed):
    where = run(installed / "bin" / "python", "-c", "import flowstill; print(flowstill.__file__)", cwd=installed)
    assert Path(where.strip()).is_relative_to(installed)
    assert run(installed / "bin" / "flowstill", "--version", cwd=installed) == f"flowstill {__version__}\n"
    assert "fsp-joint" in run(installed / "bin" / "flowstill", "list", "methods", cwd=installed)
    assert "fsp-table1" in run(installed / "bin" / "flowstill", "list", "recipes", cwd=installed)


def test_the_installed_demo_runs(installed, tmp_path):
    shown = run(installed / "bin" / "flowstill", "demo", cwd=tmp_path)
    assert "student" in shown
    folder = tmp_path / "runs" / "digits"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"]
    assert summary["versions"]["flowstill"] == __version__
    assert summary["jobs"]["student"]["accuracy"] > 90
    assert (folder / "report.html").exists()
