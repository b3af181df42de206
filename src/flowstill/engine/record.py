"""Writes a run's losses and accuracies to its metrics and shows them on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from lightning_fabric import Fabric
from torch import nn

from flowstill.engine.evaluation import evaluate_networks
from flowstill.engine.interface import Interface
from flowstill.engine.progress import Progress
from flowstill.engine.step import Step
from flowstill.runs import RunWriter

if TYPE_CHECKING:
    from flowstill.data import ImageData


class Record:
    """Measures in all processes together.

    Args:
        writer: None in processes that do not write.
    """

    def __init__(
        self,
        fabric: Fabric,
        data: ImageData,
        interfaces: Mapping[str, Interface],
        progress: Progress,
        writer: RunWriter | None,
        *,
        channels_last: bool,
    ) -> None:
        self.fabric, self.data, self.progress, self.writer = fabric, data, progress, writer
        self.interfaces = interfaces
        self.channels_last = channels_last

    def losses(self, step: Step, speed: float | None = None) -> None:
        """Log the mean losses since the last call and, for recoded gradients, the mean share that passed.

        Args:
            speed: in images per second.
        """
        for name, student in step.students.items():
            skipped, stage = step.means[name].skipped, student.stage
            if not (step.means[name].counts or skipped):
                continue
            means = step.means[name].take()
            rows = {f"train/{term}": value for term, value in means.items()}
            for player, active in student.players.items():
                end = f"/{player}" if len(stage.players) > 1 else ""
                rows[f"lr{end}"] = active.lr.at(step.number - 1, stage.steps)
                share = active.recoder.active_share() if active.recoder else None
                if share is not None:
                    rows[f"active_share{end}"] = share
            if skipped:
                rows["train/skipped"] = skipped
            if speed is not None:
                rows["images_per_second"] = speed
                self.progress.losses(means, speed)
            if self.writer:
                self.writer.metrics.log(name, stage.name, step.number, rows)

    def curve(self, step: Step) -> None:
        """Log test accuracies, in stages that train the task."""
        for name, student in step.students.items():
            if any(update.task for update in student.updates):
                self.score(name, student.stage.name, step.number, student.network)

    def score(self, name: str, stage: str, step: int, network: nn.Module) -> dict[str, float]:
        """Evaluate a network, with the first process's BatchNorm statistics in all processes, and log the result."""
        if self.fabric.world_size > 1:
            for buffer in network.buffers():
                buffer.copy_(self.fabric.broadcast(buffer))
        scores = evaluate_networks(
            self.fabric,
            [network],
            self.data,
            interfaces=[self.interfaces[name]],
            channels_last=self.channels_last,
        )
        if self.writer:
            self.writer.metrics.log(name, stage, step, {f"test/{metric}": value for metric, value in scores.items()})
        return scores

    def ensemble(self, members: Mapping[str, nn.Module], mean: Literal["softmax", "logits"]) -> dict[str, float]:
        """Evaluate several jobs' networks as one.

        Args:
            mean: whether probabilities or logits are averaged.
        """
        return evaluate_networks(
            self.fabric,
            list(members.values()),
            self.data,
            interfaces=[self.interfaces[job] for job in members],
            channels_last=self.channels_last,
            mean=mean,
        )
