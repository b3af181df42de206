"""What the flow costs beside the two networks: a step of stage 1 that reads the teacher, against one without knowledge.

The reference runs the teacher to its last tap, and the student to its own and back from there, and steps.
"""

from __future__ import annotations

import torch

from benchmarks.measure import Goal, compare, options
from benchmarks.setting import Scene
from flowstill.features.taps import Tapped
from flowstill.transfer.procedures import cyclic

GOAL = Goal("at most", 1.10)


def main() -> None:
    asked = options()
    scene = Scene(asked)
    (stage,) = cyclic(["fsp"], steps=100_000, lr=1e-3)
    network, feed = scene.network("resnet8").train(), scene.feed(stage)
    teacher, student = (Tapped(net, ["layer3"], until="taps") for net in (scene.teacher, network))
    parameters = [p for name, p in network.named_parameters() if not name.startswith("fc")]
    optimizer = torch.optim.SGD(parameters, lr=1e-9, momentum=0.9, weight_decay=1e-4, fused=True)
    layout, half = scene.precision.memory_format, scene.precision.dtype == "bf16"
    done = 0

    def without_knowledge() -> None:
        nonlocal done
        images = feed(done).images.contiguous(memory_format=layout)
        with torch.autocast(asked.device.type, torch.bfloat16, enabled=half):
            with torch.no_grad():
                teacher(images)
            found = student(images)["layer3"]
        optimizer.zero_grad()
        torch.autograd.backward(found, torch.ones_like(found))
        optimizer.step()
        done += 1

    ways = {"no knowledge": without_knowledge, "ours": scene.step(stage)}
    compare("stage 1, live", f"FSP, ResNet-26 to ResNet-8, {scene}", ways, GOAL, asked, repeats=15)


if __name__ == "__main__":
    main()
