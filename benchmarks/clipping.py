"""Adaptive clipping takes two gradients over one forward: a joint step with it, against one backward of the summed loss."""

from __future__ import annotations

from benchmarks.measure import Goal, compare, options
from benchmarks.setting import Scene
from flowstill.transfer.procedures import joint
from flowstill.transfer.rules import AdaptiveClip

GOAL = Goal("at most", 1.6)


def main() -> None:
    asked = options()
    scene = Scene(asked)
    ((summed,), (clipped,)) = (joint("fsp", steps=100_000, lr=1e-3, **rule) for rule in ({}, {"rule": AdaptiveClip()}))
    shapes = f"FSP and labels, ResNet-26 to ResNet-8, {scene}"
    loops = {"summed": scene.loop(summed), "ours": scene.loop(clipped)}
    ways = {name: loop.advance for name, loop in loops.items()}
    compare("joint with adaptive clipping", shapes, ways, GOAL, asked, repeats=9)
    batch = next(scene.data.train_batches("all", batch=256, steps=1, device=asked.device))
    runners = {name: loop.runners["student"] for name, loop in loops.items()}
    reading = loops["ours"].stored.teacher.read(batch.images, runners["ours"].losses([0]))
    alone = {name: lambda its=runner: its.update(0, batch, reading, 0) for name, runner in runners.items()}
    compare("the same without the teacher's forward", shapes, alone, GOAL, asked, repeats=9)


if __name__ == "__main__":
    main()
