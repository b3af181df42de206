"""What is measured in a run: losses and accuracies, into its metrics and onto the screen."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Literal

from lightning_fabric import Fabric
from torch import nn

from flowstill.engine.evaluation import evaluate_networks
from flowstill.engine.loop import StageLoop
from flowstill.engine.progress import Watch
from flowstill.runs import RunWriter

if TYPE_CHECKING:
    from flowstill.data import ImageData

_log = logging.getLogger("flowstill")


class Record:
    """Measures in every process, since all have a part in it. writer: None in those that do not write."""

    def __init__(
        self, fabric: Fabric, data: ImageData, watch: Watch, writer: RunWriter | None, *, channels_last: bool
    ) -> None:
        self.fabric, self.data, self.watch, self.writer = fabric, data, watch, writer
        self.channels_last = channels_last
        self._warned: set[tuple[str, str]] = set()

    def losses(self, loop: StageLoop, speed: float | None = None) -> None:
        """Bring the losses since the last time to the host. speed: in images a second."""
        for name, meter in loop.meters.items():
            if not meter.counts:
                continue
            means = meter.means()
            stage = loop.stages[name]
            self._warn_of_divergence(name, stage.name, loop.step, means)
            rates = {
                f"lr/{player}" if len(stage.players) > 1 else "lr": spec.lr.at(loop.step - 1, stage.steps)
                for player, spec in stage.players.items()
            }
            rows = {**{f"train/{term}": value for term, value in means.items()}, **rates}
            if speed is not None:
                rows["images_per_second"] = speed
                self.watch.losses(means, speed)
            if self.writer:
                self.writer.metrics.log(name, stage.name, loop.step, rows)

    def _warn_of_divergence(self, name: str, stage: str, step: int, means: dict[str, float]) -> None:
        """Say once a stage that a loss is no number any more: the run goes on, since other jobs may be well."""
        lost = [term for term, value in means.items() if not math.isfinite(value)]
        if lost and self.writer and (name, stage) not in self._warned:
            self._warned.add((name, stage))
            _log.warning(
                "job %r, stage %r: the loss %r is not finite by update %d. A lower learning rate may mend it.",
                name,
                stage,
                lost[0],
                step,
            )

    def curve(self, loop: StageLoop) -> None:
        """Accuracies on the way, in stages that train the task."""
        for name, runner in loop.runners.items():
            if any(update.task for update in runner.stage.updates):
                self.score(name, runner.stage.name, loop.step, runner.learner.student)

    def score(self, name: str, stage: str, step: int, network: nn.Module) -> dict[str, float]:
        """A network's accuracy and the rest, with the first process's BatchNorm statistics in all of them."""
        if self.fabric.world_size > 1:
            for buffer in network.buffers():
                buffer.copy_(self.fabric.broadcast(buffer))
        scores = evaluate_networks(self.fabric, [network], self.data, channels_last=self.channels_last)
        if self.writer:
            self.writer.metrics.log(name, stage, step, {f"test/{metric}": value for metric, value in scores.items()})
        return scores

    def ensemble(self, members: list[nn.Module], mean: Literal["softmax", "logits"]) -> dict[str, float]:
        """The same of several networks together. mean: of what, their probabilities or their logits."""
        return evaluate_networks(self.fabric, members, self.data, channels_last=self.channels_last, mean=mean)
