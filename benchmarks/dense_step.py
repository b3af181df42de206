"""Neither network runs beyond what a step trains: the first of three end-anchored steps, against all dense flows."""

from __future__ import annotations

from benchmarks.measure import Goal, compare, options
from benchmarks.setting import Scene
from flowstill.knowledge.dense import Dense
from flowstill.transfer.procedures import cyclic

GOAL = Goal("at most", 0.5)


def main() -> None:
    asked = options()
    scene = Scene(asked)
    ((whole,), (first,)) = (
        cyclic([knowledge], steps=100_000, lr=1e-3) for knowledge in (Dense(), Dense(step=1, anchor="end"))
    )
    ways = {"all dense flows": scene.step(whole), "ours": scene.step(first)}
    compare("dense, end-anchored step 1 of 3", f"ResNet-26 to ResNet-8, {scene}", ways, GOAL, asked, repeats=9)


if __name__ == "__main__":
    main()
