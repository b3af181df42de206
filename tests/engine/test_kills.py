"""Runs killed at random places, and processes that lost their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import flowstill as fs
from flowstill.files import alone_in
from support.compared_runs import PLAIN
from support.engine_recipes import recipe

WITH_SUPPORT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}  # for processes of their own


def test_a_few_killed_runs_resume_to_the_same_networks():
    """``make soak`` does the same 200 times."""
    result = subprocess.run(
        [sys.executable, "-m", "support.killing", "--kills", "3", "--seed", "7"],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env=WITH_SUPPORT,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 kills, " in result.stdout


TWO = """
import sys
import flowstill as fs
from support.compared_runs import PLAIN
from support.engine_recipes import recipe

if __name__ == "__main__":
    fs.train(recipe(steps=int(sys.argv[2])), sys.argv[1], devices=2, resume=True, **PLAIN)
"""


@pytest.mark.slow
def test_spawned_processes_end_with_their_parent_and_the_run_resumes(tmp_path):
    script, folder = tmp_path / "two.py", tmp_path / "run"
    script.write_text(TWO)
    parent = subprocess.Popen([sys.executable, str(script), str(folder), "400"], env=WITH_SUPPORT)
    try:
        children = _wait_for(lambda: (folder / "metrics.csv").exists() and _children(parent.pid))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _wait_for(lambda: not any(_alive(child) for child in children), seconds=20)
    with alone_in(folder) as alone:
        assert alone
    run = fs.train(recipe(steps=400), folder, devices=2, resume=True, **PLAIN)
    assert run.finished


def _children(process: int) -> list[int]:
    """The processes that this one has started, and still has."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            found.append(int(path.parent.name))
    return found


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait_for(found, seconds=300):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")
