"""How good KDGAN's copy of the teacher still is while it moves.

    python docs/results/teacher_copy.py DATA TEACHER.safetensors OUT [KEY=VALUE ...]

ResNet-26 into ResNet-8 on CIFAR-10 by the row `kdgan` of `cifar10-methods` with these changes, 425 updates of 128 images.
The run is interrupted where UPDATES says, and the copy in its saved state measured on the 5 000 held-out images.
"""

import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

import flowstill as fs
from flowstill.data import open_data
from flowstill.engine.context import OnStep
from flowstill.engine.evaluation import evaluate_networks
from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.recipes.load import load_recipe

UPDATES = (10, 25, 50, 100, 200, 300, 424)
COPY = "teacher_copy.network."


def main(data_root: str, teacher: str, out: str, *changes: str) -> None:
    """Print the copy's accuracy over the updates."""
    changes = (f"teacher.weights={teacher}", "data.batch=128", "data.hold_out=5000", *changes)
    whole = load_recipe("cifar10-methods", scale=0.005, data_root=data_root, set=changes)
    recipe = replace(whole, jobs={name: whole.jobs[name] for name in ("teacher", "kdgan")}, together=())
    data = open_data(recipe.data, seed=recipe.seed)
    fabric, network = make_fabric("cpu", 1, Precision("32")), fs.create("resnet26", 10, weights=teacher)
    show(0, evaluate_networks(fabric, [network], data, batch=500))
    for updates in UPDATES:
        reached = []
        try:
            fs.train(recipe, out, resume=updates != UPDATES[0], precision="bf16", on_step=stop_at(updates, reached))
        except KeyboardInterrupt:
            if not reached:
                raise
            network.load_state_dict(copy_in(Path(out, "state.pt")))
            show(updates, evaluate_networks(fabric, [network], data, batch=500))
    run = fs.train(recipe, out, resume=True)
    print(f"the student: {run.summary['jobs']['kdgan']['accuracy']:.2f} %")


def show(updates: int, scores: dict[str, float]) -> None:
    """One line of the course."""
    print(f"{updates:5} updates: {scores['accuracy']:.2f} %, loss {scores['loss']:.3f}", flush=True)


def stop_at(updates: int, reached: list[int]) -> OnStep:
    """An ``on_step`` that interrupts after so many updates as Ctrl-C does, and then says that it was this."""

    def stop(job: str, stage: str, step: int) -> None:
        if step == updates:
            reached.append(step)
            signal.raise_signal(signal.SIGINT)

    return stop


def copy_in(state: Path) -> dict[str, torch.Tensor]:
    """The weights of the copy in a run's saved state."""
    learner = torch.load(state, weights_only=True)["loop"]["runners"]["kdgan"]["learner"]
    return {name.partition(COPY)[2]: value for name, value in learner.items() if COPY in name}


if __name__ == "__main__":
    main(*sys.argv[1:])
