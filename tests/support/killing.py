"""Runs that are killed again and again and resumed until they finish: ``python -m support.killing --kills 200 --seed 0``.

The places to kill at are calls inside flowstill, noted in one whole run. Each kill draws a function first and then one of its
calls, so that reading data, checking, saving and reporting are hit as often as training is. The process kills itself there with
SIGKILL, SIGTERM or SIGINT. A finished run must equal the uninterrupted one bit for bit.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import flowstill as fs
from flowstill.engine import context
from flowstill.papers.plan import plan_table
from flowstill.recipes.recipe import AfterStage, Ensemble, Job
from flowstill.transfer.procedures import alone
from support.compared_runs import PLAIN, rows
from support.stored_recipes import ALL_VIEWS, CROPS, NET, fsp_first, recipe
from support.tiny_table import TINY, make

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SOURCE = str(Path(fs.__file__).parent)
Place = tuple[str, int]  # a function, and which of its calls


def train(folder: Path) -> None:
    """Two jobs and an ensemble: stored knowledge, several stages, one that starts from another's."""
    after = Job(NET, alone(3, 0.05), start=AfterStage("student", "transfer"))
    given = recipe(fsp_first(3), ALL_VIEWS, CROPS, after=after)
    given = replace(given, ensembles={"both": Ensemble(("student", "after"))})
    fs.train(given, folder / "run", resume=True, **PLAIN)


def reproduce(folder: Path) -> None:
    """A table of two rows, with a teacher of its own."""
    (folder / "tiny.yaml").write_text(TINY)
    make(plan_table(str(folder / "tiny.yaml"), rows=["kd", "scratch"]), folder / "table")


def in_child(work: Callable[[Path], None], folder: Path, profile: Callable[..., None] | None, save_every: float) -> int:
    """Fork, work there, and wait: the exit code, negative for a signal, as ``subprocess`` has it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            context.SAVE_EVERY = save_every
            sys.setprofile(profile)
            work(folder)
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException as error:
            print(f"    {type(error).__name__}: {error}", flush=True)
        finally:
            sys.setprofile(None)
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def called(frame: Any, event: str, argument: Any) -> str | None:
    """The name of a call inside flowstill: of its own function, or of what it calls of the standard library in C."""
    code = frame.f_code
    if event not in ("call", "c_call") or not code.co_filename.startswith(SOURCE):
        return None
    name = f"{code.co_filename[len(SOURCE) + 1 :]}:{code.co_qualname}"
    return name if event == "call" else f"{name} > {argument.__name__}"


def noted(work: Callable[[Path], None], folder: Path) -> dict[str, int]:
    """How often a whole run calls each function; it is the run to compare with."""
    counts: collections.Counter[str] = collections.Counter()

    def note(*event: Any) -> None:
        if name := called(*event):
            counts[name] += 1

    def whole(folder: Path) -> None:
        work(folder)
        sys.setprofile(None)
        (folder / "calls.json").write_text(json.dumps(counts))

    assert in_child(whole, folder, note, save_every=30.0) == 0
    found: dict[str, int] = json.loads((folder / "calls.json").read_text())
    return found


def kill_at(place: Place, number: signal.Signals) -> Callable[..., None]:
    """A profile function that sends the signal to its own process at this place."""
    seen = 0

    def profile(*event: Any) -> None:
        nonlocal seen
        if called(*event) == place[0]:
            seen += 1
            if seen == place[1]:
                os.kill(os.getpid(), number)

    return profile


def differences(folder: Path, whole: Path) -> Iterator[str]:
    """What is not as in the uninterrupted run."""
    for path in sorted(whole.rglob("*.safetensors")) + sorted(whole.rglob("table.*")):
        other = folder / path.relative_to(whole)
        if path.suffix != ".png" and (not other.is_file() or other.read_bytes() != path.read_bytes()):
            yield f"{path.relative_to(whole)} differs"
    for path in sorted(whole.rglob("recipe.yaml")):
        one, other = fs.Run.open(path.parent), fs.Run.open(folder / path.parent.relative_to(whole))
        if not other.finished or rows(one) != rows(other):
            yield f"{path.parent.relative_to(whole)}: the measurements differ"
        for left in [*other.path.glob(".*.partial"), *other.path.glob("state.pt")]:
            yield f"{left.relative_to(folder)} is left over"


def one_run(work: Callable[[Path], None], whole: Path, calls: dict[str, int], draw: random.Random, most: int) -> int:
    """Kill a run at random places, at most ``most`` times, until an attempt comes to its end; returns the kills."""
    kills = 0
    save_every = draw.choice((0.0, 30.0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while True:
            function = draw.choice(sorted(calls))
            place, number = (function, draw.randint(1, min(calls[function], 20))), draw.choice(SIGNALS)
            killer = kill_at(place, number) if kills < most else None
            code = in_child(work, folder, killer, save_every)
            ended = {0: "finished", 130: "interrupted"}.get(code, f"exit code {code}")
            print(f"  {number.name if killer else 'no signal'} at call {place[1]} of {place[0]}: {ended}", flush=True)
            assert code in (0, 130, -signal.SIGKILL, -signal.SIGTERM), ended
            if code == 0:
                break
            kills += 1
        wrong = list(differences(folder, whole))
        if wrong:
            shutil.copytree(folder, kept := tempfile.mkdtemp(prefix="killed-"), dirs_exist_ok=True)
            raise AssertionError(f"{'; '.join(wrong)}. The folder is kept in {kept}.")
    return kills


def soak(kills: int, seed: int) -> None:
    """Kill runs this often in all; the same seed draws the same places.

    Raises:
        AssertionError: a run could not be resumed, or differs from the uninterrupted one.
    """
    draw, done, finished, start = random.Random(seed), 0, 0, time.perf_counter()
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        whole = {work: Path(name, work.__name__) for work in (train, reproduce)}
        for folder in whole.values():
            folder.mkdir()
        calls = {work: noted(work, folder) for work, folder in whole.items()}
        while done < kills:
            work = draw.choice(list(whole))
            print(f"{work.__name__}, after {done} kills", flush=True)
            done += one_run(work, whole[work], calls[work], draw, min(kills - done, 10))
            finished += 1
    print(f"{done} kills, {finished} runs, all equal to the uninterrupted ones; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    soak(given.kills, given.seed)
