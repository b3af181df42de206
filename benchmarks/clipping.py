"""Adaptive clipping takes two gradients over one forward: a joint step with it, against one backward of the summed loss."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.measure import Goal, compare, options
from benchmarks.setting import Scene
from flowstill.engine.step import Step
from flowstill.engine.teacher import TaughtBatch
from flowstill.transfer.procedures import joint
from flowstill.transfer.rules import AdaptiveClip

GOAL = Goal("at most", 1.6)


def main() -> None:
    asked = options()
    scene = Scene(asked)
    ((summed,), (clipped,)) = (joint("fsp", steps=100_000, lr=1e-3, **rule) for rule in ({}, {"rule": AdaptiveClip()}))
    shapes = f"FSP and labels, ResNet-26 to ResNet-8, {scene}"
    steps = {"summed": scene.step(summed), "ours": scene.step(clipped)}
    compare("joint with adaptive clipping", shapes, dict(steps), GOAL, asked, repeats=9)
    batch = next(scene.data.train_batches("all", batch=256, steps=1, device=asked.device))
    loss = steps["ours"].students["student"].terms[0][-1].loss
    taught = steps["ours"].teacher.teach(batch, [loss])

    def update(step: Step) -> Callable[[], object]:
        reading = TaughtBatch(batch, taught.reading)
        return lambda: step.update(step.students["student"], 0, reading)

    alone = {name: update(step) for name, step in steps.items()}
    compare("the same without the teacher's forward", shapes, alone, GOAL, asked, repeats=9)


if __name__ == "__main__":
    main()
