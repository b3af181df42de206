"""Three students of one teacher in lockstep read it once a step, against three runs that each read it anew.

One run of ``train`` with groups of both kinds in turn; the time is a step's, from its inside.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from unittest import mock

import flowstill as fs
from benchmarks.measure import Goal, options, row
from benchmarks.setting import BATCH, CLASSES, Clock, cifar_folder
from flowstill.nets import save_weights
from flowstill.recipes.recipe import Job, Net, Recipe
from flowstill.transfer.procedures import cyclic

GOAL, ROUNDS, STEPS = Goal("at most", 0.75), 3, 12


def main() -> None:
    asked = options()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(fs.create("resnet26", num_classes=CLASSES), folder / "teacher.safetensors")
        student = Job(Net("resnet8"), cyclic(["fsp"], steps=STEPS, lr=1e-3), teacher="teacher")
        names = {kind: [f"{kind}{number}" for number in range(asked.repeats or ROUNDS)] for kind in ("apart", "first")}
        groups = [(first, f"{first}b", f"{first}c") for first in names["first"]]
        jobs = {"teacher": Job(Net("resnet26"), weights=str(folder / "teacher.safetensors"))}
        for alone, group in zip(names["apart"], groups, strict=True):
            jobs |= dict.fromkeys((alone, *group), student)
        recipe = Recipe("lockstep", cifar_folder(folder, 5 * BATCH), jobs, together=tuple(groups))
        clock = Clock(folder / "clock")
        with mock.patch("flowstill.engine.training.choose", return_value=asked.precision):
            fs.train(recipe, folder / "run", device=asked.device.type, progress=False, on_step=clock)
        seconds = clock.seconds()
    apart, together = (
        statistics.median(taken for name in names[kind] for taken in seconds[name]) for kind in ("apart", "first")
    )
    shapes = f"stage 1 of FSP, ResNet-26 to ResNet-8, batch {BATCH}, 32x32, {asked.precision}"
    row("three students in lockstep", shapes, "three runs", 3 * apart, together, GOAL)


if __name__ == "__main__":
    main()
