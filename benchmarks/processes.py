"""Training on two processes of one thread each (DDP over gloo), against one process of two threads: throughput.

Runs of ``train``; the time is a step's, from its inside, so that starting the processes is not in it.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from unittest import mock

import torch

import flowstill as fs
from benchmarks.measure import Goal, options, row
from benchmarks.setting import BATCH, Clock, cifar_folder
from flowstill.recipes.recipe import Job, Net, Recipe
from flowstill.transfer.procedures import alone

GOAL, STEPS = Goal("at least", 0.9), 30


def main() -> None:
    asked = options()
    if asked.device.type != "cpu":
        return  # for cores
    os.environ.pop("OMP_NUM_THREADS", None)  # the processes share the cores
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = STEPS * (asked.repeats or 1)
        recipe = Recipe("plain", cifar_folder(folder, 5 * BATCH), {"student": Job(Net("resnet8"), alone(steps, 0.01))})

        def seconds(run: int, processes: int) -> list[float]:
            clock = Clock(folder / f"clock{run}")
            with mock.patch("flowstill.engine.training.choose", return_value=asked.precision):
                fs.train(recipe, folder / f"run{run}", device="cpu", devices=processes, progress=False, on_step=clock)
            return clock.seconds(skipped=3)["student"]

        before, two, after = seconds(0, 1), seconds(1, 2), seconds(2, 1)
    shapes = f"plain training of ResNet-8, batch {BATCH}, 32x32, {asked.precision}"
    one = statistics.median(before + after)
    row("two processes of one thread", shapes, "one of two threads", one, statistics.median(two), GOAL)


if __name__ == "__main__":
    main()
