"""Plain training of a ResNet-8 by the engine, against a hand-written loop on the same batches with the same kernels."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from benchmarks.measure import Goal, compare, options
from benchmarks.setting import Scene
from flowstill.transfer.procedures import alone

GOAL, LR, ALIKE = Goal("at most", 1.03), 0.01, 3


def main() -> None:
    asked = options()
    scene = Scene(asked)
    (stage,) = alone(100_000, LR)
    step, network, feed = scene.step(stage), scene.network("resnet8").train(), scene.feed(stage)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9, weight_decay=1e-4, fused=True)
    layout, half = scene.precision.memory_format, scene.precision.dtype == "bf16"
    done = 0

    def by_hand() -> torch.Tensor:
        nonlocal done
        batch = feed(done)
        images = batch.images.contiguous(memory_format=layout)
        with torch.autocast(asked.device.type, torch.bfloat16, enabled=half):
            logits = network(images)
        loss = F.cross_entropy(logits.float(), batch.labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        done += 1
        return loss.detach()

    raw = torch.stack([by_hand() for _ in range(ALIKE)]).mean()
    for _ in range(ALIKE):
        step()
    torch.testing.assert_close(float(raw), step.means["student"].take()["labels"], rtol=1e-3, atol=1e-4)
    ways = {"raw PyTorch": by_hand, "ours": step}
    compare("engine: a plain training step", f"ResNet-8, {scene}", ways, GOAL, asked, repeats=31)


if __name__ == "__main__":
    main()
