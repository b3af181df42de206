"""What a joint step holds, against a plain step of the student and the teacher's forward, each measured by itself."""

from __future__ import annotations

from benchmarks.measure import Goal, mebibytes, options, peak, row
from benchmarks.setting import Scene
from flowstill.transfer.procedures import alone, joint

GOAL = Goal("at most", 1.1)


def main() -> None:
    asked = options()
    scene = Scene(asked)
    (plain,), (both,) = alone(100_000, 1e-3), joint("fsp", steps=100_000, lr=1e-3)
    batch = next(scene.data.train_batches("all", batch=256, steps=1, device=asked.device))
    step = scene.step(both)
    losses = [term.loss for term in step.students["student"].terms[0]]
    teacher = peak(lambda: step.teacher.read(batch.images, losses), asked.device)
    reference, ours = (peak(way, asked.device) for way in (scene.step(plain), step))
    row(
        "peak memory of a joint step",
        f"FSP and labels, ResNet-26 to ResNet-8, {scene}",
        "plain step + teacher's forward",
        reference + teacher,
        ours,
        GOAL,
        mebibytes,
    )


if __name__ == "__main__":
    main()
