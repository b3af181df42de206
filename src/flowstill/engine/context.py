"""What one process needs for its part in a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from flowstill.engine.interface import Interface
from flowstill.engine.interruption import Interruption
from flowstill.engine.precision import Precision
from flowstill.engine.progress import Progress
from flowstill.engine.record import Record
from flowstill.engine.stored import Stores
from flowstill.recipes.check import JobPlan
from flowstill.recipes.recipe import Recipe
from flowstill.runs import RunWriter

if TYPE_CHECKING:
    from flowstill.data import ImageData

SAVE_EVERY = 30.0  # seconds between two saved states
OnStep = Callable[[str, str, int], None]  # job, stage, steps of the stage done


@dataclass(frozen=True)
class Work:
    """What to do, the same in every process.

    Attributes:
        recipe: the jobs.
        plans: what each job will train and read, by name.
        precision: number format and memory layout.
        interfaces: how each job's network sees the images, and what its output means.
        networks: jobs' networks that were given as objects.
        on_step: called after each step.
    """

    recipe: Recipe
    plans: Mapping[str, JobPlan]
    precision: Precision
    interfaces: Mapping[str, Interface]
    networks: Mapping[str, nn.Module] = field(default_factory=dict)
    on_step: OnStep | None = None


class Context:
    """One process's part in a run. Only the process of rank 0 writes."""

    def __init__(self, fabric: Fabric, work: Work, data: ImageData, writer: RunWriter, progress: Progress) -> None:
        self.fabric, self.work, self.data, self.writer, self.progress = fabric, work, data, writer, progress
        self.recipe, self.plans = work.recipe, work.plans
        self.channels_last = work.precision.layout == "channels_last"
        self.writes = fabric.global_rank == 0
        self.stores = Stores(fabric, writer.path, data, work.precision)
        self.record = Record(
            fabric,
            data,
            work.interfaces,
            progress,
            writer if self.writes else None,
            channels_last=self.channels_last,
        )
        self.interruption = Interruption()
        self._saved = time.perf_counter()

    def should_save(self, looked: bool) -> bool:
        """Whether to save now: every ``SAVE_EVERY`` seconds, and at once when interrupted. All processes agree.

        Args:
            looked: whether the losses have just come to the host; several processes only ask each other then.
        """
        due = time.perf_counter() - self._saved > SAVE_EVERY
        if self.fabric.world_size == 1:
            return self.interruption.asked or due
        if not looked:
            return False
        mine = torch.tensor([float(self.interruption.asked), float(due)], device=self.fabric.device)
        summed = self.fabric.all_reduce(mine, reduce_op="sum")
        assert isinstance(summed, Tensor)
        asked, due_somewhere = summed.tolist()
        self.interruption.asked = asked > 0
        return self.interruption.asked or due_somewhere > 0

    def saved(self) -> None:
        """Note that the state was saved; ends the run if it was interrupted."""
        self._saved = time.perf_counter()
        if self.interruption.asked:
            raise KeyboardInterrupt
