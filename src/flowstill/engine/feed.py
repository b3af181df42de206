"""Which images each step of a stage sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from lightning_fabric import Fabric

from flowstill.data.batch import Batch
from flowstill.engine.seeds import derive
from flowstill.transfer.stages import Stage

if TYPE_CHECKING:
    from flowstill.data import ImageData


class Feed:
    """A stage's batches, from step ``start`` on. They are the same for every start.

    Task terms see the labelled images, transfer terms all. A step with both sees the labelled batch, and where the data
    asks for ``unlabelled`` images, that many more from the whole set with their labels hidden.

    Args:
        data: the images, with the batch size that they were opened for.
        stage: says which of its batches have a task and which a transfer.
        labels: number of labelled images, None for as many as the data says.
        seed: of order and augmentation.
        channels_last: the memory layout of the images that it gives.
    """

    def __init__(
        self,
        fabric: Fabric,
        data: ImageData,
        stage: Stage,
        *,
        seed: int,
        start: int = 0,
        labels: int | None = None,
        channels_last: bool = False,
    ) -> None:
        labels = labels or data.spec.labels
        self.steps, self.channels_last = stage.steps, channels_last
        unlabelled = data.spec.unlabelled
        self._kinds = [_streams(task, transfer, bool(unlabelled and labels)) for task, transfer in stage.rhythm]

        def stream(kind: str) -> Iterator[Batch]:
            uses = [kind in kinds for kinds in self._kinds]
            before = start // len(uses) * sum(uses) + sum(uses[: start % len(uses)])
            return data.train_batches(
                "labelled" if kind == "labelled" else "all",
                labels=labels,
                start=before,
                steps=stage.steps - start,
                batch=unlabelled if kind == "extra" else data.spec.batch,
                seed=derive(seed, kind == "extra"),
                device=fabric.device,
                rank=fabric.global_rank,
                world=fabric.world_size,
            )

        self._streams = {kind: stream(kind) for kinds in self._kinds for kind in kinds}

    def __call__(self, step: int) -> Batch:
        """The batch of ``step``; call with each step from the start on, in order."""
        parts = [next(self._streams[kind]) for kind in self._kinds[step % len(self._kinds)]]
        images = parts[0].images if len(parts) == 1 else torch.cat([part.images for part in parts])
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if len(parts) == 1:
            return replace(parts[0], images=images, step=step, steps=self.steps)
        hidden = torch.full_like(parts[1].labels, -1)
        views = [part.view for part in parts if part.view is not None]
        return Batch(
            images,
            torch.cat([parts[0].labels, hidden]),
            torch.cat([part.index for part in parts]),
            torch.cat([part.epoch for part in parts]),
            step,
            self.steps,
            torch.cat(views) if views else None,
        )


def _streams(task: bool, transfer: bool, extra: bool) -> tuple[str, ...]:
    if not task:
        return ("all",)
    return ("labelled", "extra") if transfer and extra else ("labelled",)
