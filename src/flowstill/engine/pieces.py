"""A batch divided, so that its parts go through the networks one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from flowstill.data.batch import Batch
from flowstill.features.taps import Reading
from flowstill.transfer.knowledge import Loss, Target


@dataclass(frozen=True)
class Piece:
    """Some images of a batch, with what the teacher says of them: a reading, or targets that were stored."""

    batch: Batch
    teacher: Reading | None
    stored: Mapping[Loss, Target]


def pieces(whole: Piece, count: int) -> Iterator[Piece]:
    """``count`` parts of the whole in order, equal to within one image; fewer if it has fewer images."""
    size = len(whole.batch.images)
    for number in range(min(count, size)):
        part = slice(number * size // min(count, size), (number + 1) * size // min(count, size))
        yield _cut(whole, part)


def _cut(whole: Piece, part: slice) -> Piece:
    batch, teacher = whole.batch, whole.teacher
    view = batch.view if batch.view is None else batch.view[part]
    batch = replace(
        batch,
        images=batch.images[part],
        labels=batch.labels[part],
        index=batch.index[part],
        epoch=batch.epoch[part],
        view=view,
    )
    if teacher is not None:
        logits = teacher.logits if teacher.logits is None else teacher.logits[part]
        teacher = Reading(teacher.images[part], logits, {tap: maps[part] for tap, maps in teacher.maps.items()})
    return Piece(batch, teacher, {loss: _cut_target(target, part) for loss, target in whole.stored.items()})


def _cut_target(target: Any, part: slice) -> Target:
    return target[part] if isinstance(target, Tensor) else tuple(tensor[part] for tensor in target)
