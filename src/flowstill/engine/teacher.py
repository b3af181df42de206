"""What a stage's losses get from their teacher: one reading per batch, and targets, computed from it or stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from flowstill.data.batch import Batch
from flowstill.engine.folding import FoldedNetwork, Until
from flowstill.engine.interface import Interface
from flowstill.features.taps import Reading, Tap, Tapped
from flowstill.transfer.knowledge import Loss, Target

if TYPE_CHECKING:
    from flowstill.engine.stored import StoredTargets
    from flowstill.engine.student import Student

Needs = tuple[tuple[Tap, ...], bool]  # which taps of a teacher, and whether its logits


@dataclass(frozen=True)
class TaughtBatch:
    """Images with what the teacher says about them.

    Attributes:
        reading: None where nothing was to be read.
        targets: the targets known before any student moves, stored or shared.
    """

    batch: Batch
    reading: Reading | None = None
    targets: Mapping[Loss, Target] = field(default_factory=dict)

    def split(self, count: int) -> Iterator[TaughtBatch]:
        """Micro-batches in order, equal in size to within one image; fewer than ``count`` if there are fewer images."""
        size = len(self.batch.images)
        if count == 1:
            yield self
            return
        for number in range(min(count, size)):
            yield self._part(slice(number * size // min(count, size), (number + 1) * size // min(count, size)))

    def _part(self, part: slice) -> TaughtBatch:
        batch, reading = self.batch, self.reading
        batch = replace(
            batch,
            images=batch.images[part],
            labels=batch.labels[part],
            index=batch.index[part],
            epoch=batch.epoch[part],
            view=batch.view if batch.view is None else batch.view[part],
        )
        if reading is not None:
            logits = reading.logits if reading.logits is None else reading.logits[part]
            maps = {tap: maps[part] for tap, maps in reading.maps.items()}
            reading = Reading(reading.images[part], logits, maps)
        targets = {loss: tree_map(lambda tensor: tensor[part], target) for loss, target in self.targets.items()}
        return TaughtBatch(batch, reading, targets)


class Teacher:
    """The teacher of one stage's students.

    Args:
        network: frozen, in eval mode; None reads nothing.
        channels_last: the layout of the images that it reads.
        students: their losses may share targets.
        interface: how it sees the images, and what its output means; None if it takes them as they are and gives logits.
    """

    def __init__(
        self,
        fabric: Fabric,
        network: nn.Module | None,
        channels_last: bool = False,
        students: Iterable[Student] = (),
        interface: Interface | None = None,
    ) -> None:
        self.fabric, self.network, self.interface, self.channels_last = fabric, network, interface, channels_last
        self.stored: StoredTargets | None = None  # set once the stage's stores are open
        self._folded = FoldedNetwork(network) if network is not None else None
        self._tapped: dict[Needs, Tapped] = {}
        self._first = first_alike(students)

    def teach(self, batch: Batch, losses: Sequence[Loss]) -> TaughtBatch:
        """The batch with its stored targets, one reading for all other losses, and the targets that several share."""
        stored = self.stored(batch, losses) if self.stored is not None else {}
        fresh = [loss for loss in losses if loss not in stored]
        taught = TaughtBatch(batch, self.read(batch.images, fresh), stored)
        return replace(taught, targets={**stored, **self._shared(fresh, taught)})

    def read(self, images: Tensor, losses: Iterable[Loss]) -> Reading | None:
        """What these losses need from it, by one forward that stops after the last tap; None if they need nothing."""
        taps, logits = needs_of(losses)
        if self._folded is None or not (taps or logits):
            return None
        if self.interface is not None:
            images = self.interface.images(images)
        if (taps, logits) not in self._tapped:
            until: Until = "logits" if logits else "taps"
            reader = self._folded.reader(taps, (images.shape[1], images.shape[2], images.shape[3]), until)
            self._tapped[taps, logits] = Tapped(reader, taps, until=until)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), self.fabric.autocast():
            reading: Reading = self._tapped[taps, logits](images)
        if reading.logits is not None and self.interface is not None:
            reading = replace(reading, logits=self.interface.logits(reading.logits))
        return reading

    def target(self, loss: Loss, taught: TaughtBatch) -> Target:
        """What a loss compares a student with: already known, or computed now from the reading and the batch."""
        if loss in taught.targets:
            return taught.targets[loss]
        return self.make_target(loss, taught.reading, taught.batch)

    def make_target(self, loss: Loss, reading: Reading | None, batch: Batch | None = None) -> Target:
        """The loss's target, without gradient, in the run's precision."""
        with torch.no_grad(), self.fabric.autocast():
            return loss.target(reading, batch)

    def _shared(self, losses: Sequence[Loss], taught: TaughtBatch) -> dict[Loss, Target]:
        """The targets that several jobs' losses have in common, each made once."""
        groups: dict[Loss, list[Loss]] = {}
        for loss in losses:
            if loss in self._first:
                groups.setdefault(self._first[loss], []).append(loss)
        targets = {first: self.target(first, taught) for first, alike in groups.items() if len(alike) > 1}
        return {loss: target for first, target in targets.items() for loss in groups[first]}


def needs_of(losses: Iterable[Loss]) -> Needs:
    """Which teacher taps these losses read, each once, and whether the logits too."""
    losses = list(losses)
    taps = dict.fromkeys(tap for loss in losses for tap in loss.teacher_taps)
    return tuple(taps), any(loss.teacher_logits for loss in losses)


def first_alike(students: Iterable[Student]) -> dict[Loss, Loss]:
    """For each loss whose target depends on the teacher's reading alone: the first loss with the same target."""
    firsts: dict[tuple[object, ...], Loss] = {}
    found = {}
    for term in (term for student in students for row in student.terms for term in row):
        if term.loss.storable:
            alike = (repr(term.term.knowledge), type(term.loss), term.loss.teacher_taps, term.loss.teacher_logits)
            found[term.loss] = firsts.setdefault(alike, term.loss)
    return found
