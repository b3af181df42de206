"""Plain training of a ResNet-8 through the engine's update, against a hand-written PyTorch loop with the same kernels."""

from __future__ import annotations

import torch
from torch.nn import functional as F

import flowstill as fs
from benchmarks.measure import report
from flowstill.data.batch import Batch
from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.engine.runner import StageRunner
from flowstill.knowledge.base import Setting
from flowstill.transfer.procedures import alone


def main(batch: int = 256) -> None:
    index = torch.arange(batch)
    images, labels = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)), index % 10
    raw = fs.create("resnet8", num_classes=10).train()
    optimizer = torch.optim.SGD(raw.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)

    def by_hand() -> None:
        loss = F.cross_entropy(raw(images), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    student = fs.create("resnet8", num_classes=10)
    (stage,) = alone(10_000, 0.1)
    runner = StageRunner(
        make_fabric("cpu", 1, Precision()), student, stage, (), Setting(None, student, (3, 32, 32), 10)
    )
    seen = Batch(images, labels, index, torch.zeros_like(index))

    def engine() -> None:
        runner.update(0, seen, None, 0)

    report(
        "engine: a plain training step",
        f"ResNet-8, batch {batch}, float32",
        {"raw PyTorch": by_hand, "ours": engine},
        "ours",
        15,
    )


if __name__ == "__main__":
    main()
