"""Many stages in one process: threads, open files and memory stay where they were."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import flowstill as fs
from flowstill.recipes.recipe import Job, Net, Recipe
from flowstill.transfer.procedures import alone
from support.compared_runs import PLAIN
from support.engine_recipes import DATA

STAGES, JOBS = 35, 4
SETTLED = 40  # stages after which nothing new is loaded or cached


def resident() -> int:
    """Bytes of this process's memory that are in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_140_stages_leave_threads_files_and_memory_flat(tmp_path):
    (stage,) = alone(1, 0.01)
    stages = [replace(stage, name=f"s{number}") for number in range(STAGES)]
    net = Net("resnet8", {"width": 0.25})
    jobs = {f"job{number}": Job(net, stages, seed=number) for number in range(JOBS)}
    seen = []

    def note(*here):
        seen.append((threading.active_count(), len(os.listdir("/proc/self/fd")), resident()))

    fs.train(Recipe("many", DATA, jobs), tmp_path, on_step=note, **PLAIN)
    assert len(seen) == STAGES * JOBS == 140
    threads, files, memory = (list(values) for values in zip(*seen, strict=True))
    assert max(threads) == threads[0]  # TensorBoard's, of the stage that is being trained
    assert max(files[1:]) <= files[1] + 1
    assert max(memory[SETTLED:]) <= memory[SETTLED] + 20e6
