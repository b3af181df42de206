"""Which images each step of a stage sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from flowstill.data.batch import Batch
from flowstill.engine.seeds import derive

if TYPE_CHECKING:
    from flowstill.data import ImageData


class Feed:
    """A stage's batches, from step ``start`` on. The same for every start: nothing is drawn that depends on it.

    Task terms see the labelled images, transfer terms all. A step with both sees the labelled batch, and where the
    data asks for ``unlabelled`` images, so many more from the whole set, their labels hidden.
    """

    def __init__(
        self,
        data: ImageData,
        rhythm: tuple[tuple[bool, bool], ...],
        *,
        batch: int,
        unlabelled: int,
        labels: int | None,
        start: int,
        steps: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._kinds = [_streams(task, transfer, bool(unlabelled and labels)) for task, transfer in rhythm]

        def stream(kind: str) -> Iterator[Batch]:
            uses = [kind in kinds for kinds in self._kinds]
            before = start // len(uses) * sum(uses) + sum(uses[: start % len(uses)])
            return data.train_batches(
                "labelled" if kind == "labelled" else "all",
                labels=labels,
                start=before,
                steps=steps,
                batch=unlabelled if kind == "extra" else batch,
                seed=derive(seed, kind == "extra"),
                device=device,
                rank=rank,
                world=world,
            )

        self._streams = {kind: stream(kind) for kinds in self._kinds for kind in kinds}

    def __call__(self, step: int) -> Batch:
        """The batch of ``step``; call with each step from the start on, in order."""
        parts = [next(self._streams[kind]) for kind in self._kinds[step % len(self._kinds)]]
        if len(parts) == 1:
            return replace(parts[0], step=step)
        hidden = torch.full_like(parts[1].labels, -1)
        views = [p.view for p in parts if p.view is not None]
        return Batch(
            torch.cat([p.images for p in parts]),
            torch.cat([parts[0].labels, hidden]),
            torch.cat([p.index for p in parts]),
            torch.cat([p.epoch for p in parts]),
            step,
            view=torch.cat(views) if views else None,
        )


def _streams(task: bool, transfer: bool, extra: bool) -> tuple[str, ...]:
    if not task:
        return ("all",)
    return ("labelled", "extra") if transfer and extra else ("labelled",)
