"""What a group's losses are given of their teacher."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from flowstill.engine.folding import Folding, Until
from flowstill.engine.learner import as_inputs
from flowstill.features.taps import Reading, Tap, Tapped
from flowstill.transfer.knowledge import Loss, Target

Needs = tuple[tuple[Tap, ...], bool]  # which taps of a teacher, and whether its logits


class Teacher:
    """A group's teacher: gives in one forward, without gradient, what is wanted of it. None reads nothing."""

    def __init__(self, fabric: Fabric, network: nn.Module | None, channels_last: bool = False) -> None:
        self.fabric, self.network, self.channels_last = fabric, network, channels_last
        self._folding = Folding(network) if network is not None else None
        self._tapped: dict[Needs, Tapped] = {}

    def read(self, images: Tensor, losses: Iterable[Loss]) -> Reading | None:
        """What these losses need of it, in one forward that stops after the last tap; None if they need nothing."""
        taps, logits = needs_of(losses)
        if self._folding is None or not (taps or logits):
            return None
        if (taps, logits) not in self._tapped:
            until: Until = "logits" if logits else "taps"
            reader = self._folding.reader(taps, (images.shape[1], images.shape[2], images.shape[3]), until)
            self._tapped[taps, logits] = Tapped(reader, taps, until=until)
        with torch.no_grad(), self.fabric.autocast():
            reading: Reading = self._tapped[taps, logits](as_inputs(images, self.channels_last))
        return reading

    def target(self, loss: Loss, reading: Reading | None) -> Target:
        """What a loss makes of a reading alone."""
        with torch.no_grad(), self.fabric.autocast():
            return loss.target(reading)


def needs_of(losses: Iterable[Loss]) -> Needs:
    """Which teacher taps these losses read, each once, and whether the logits too."""
    losses = list(losses)
    taps = dict.fromkeys(tap for loss in losses for tap in loss.teacher_taps)
    return tuple(taps), any(loss.teacher_logits for loss in losses)
