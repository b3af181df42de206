"""One step of a stage: a batch's way, in order, from the images to the last player's move."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from lightning_fabric import Fabric
from torch import Tensor

from flowstill.data.batch import Batch
from flowstill.engine.finite import not_finite
from flowstill.engine.seeds import RandomSequences
from flowstill.engine.student import LossTerm, Student
from flowstill.engine.teacher import TaughtBatch, Teacher
from flowstill.transfer.rules import Gradients

Losses = dict[str, Tensor]  # by the term's name in the metrics: detached scalars on the device


@dataclass
class RunningMeans:
    """Sums losses on the device until they are read; then the mean of each over the steps that had it.

    Not torchmetrics' MeanMetric, which launches several operations for each value and makes a weight tensor.
    """

    sums: Losses = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    skipped: int = 0  # updates that were not taken
    in_a_row: int = 0  # how many of the latest steps in a row had a skipped update; reading does not reset it

    def add(self, losses: Losses) -> None:
        """Add one step's losses; nothing leaves the device."""
        for name, loss in losses.items():
            self.sums[name] = self.sums[name] + loss if name in self.sums else loss.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def skip(self, updates: int) -> None:
        """Count the updates that one step did not take."""
        self.skipped += updates
        self.in_a_row = self.in_a_row + 1 if updates else 0

    def take(self) -> dict[str, float]:
        """The means since the last look, on the host; starts over."""
        values = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts, self.skipped = {}, {}, 0
        return values


class Step:
    """The steps of one stage, for the jobs that go together. Each call takes one.

    Args:
        students: the jobs' students, by the job's name.
        teacher: their common teacher.
        feed: gives the batch of a step, in the run's memory layout.
        sequences: each job's own random numbers.
        number: steps taken so far.
        skips: leave out updates whose losses or gradients are not finite. The device is waited for at each update.
    """

    def __init__(
        self,
        fabric: Fabric,
        students: dict[str, Student],
        teacher: Teacher,
        feed: Callable[[int], Batch],
        sequences: RandomSequences,
        number: int = 0,
        skips: bool = False,
    ) -> None:
        self.fabric, self.students, self.teacher, self.feed = fabric, students, teacher, feed
        self.sequences, self.number, self.skips = sequences, number, skips
        self.batch: Batch | None = None  # the latest one
        self.means = {job: RunningMeans() for job in students}

    def __call__(self) -> None:
        """Take one batch, read the teacher once for all jobs, then run each job's updates on it."""
        batch = self.batch = self.feed(self.number)
        updates = {job: student.cycle[self.number % len(student.cycle)] for job, student in self.students.items()}
        terms = [term for job, student in self.students.items() for n in updates[job] for term in student.terms[n]]
        taught = self.teacher.teach(batch, list(dict.fromkeys(term.loss for term in terms)))
        for job, student in self.students.items():
            losses: Losses = {}
            skipped = 0
            with self.sequences.turn_of(job) if len(self.sequences.states) > 1 else nullcontext():
                for number in updates[job]:
                    found = self.update(student, number, taught)
                    skipped += found is None
                    for name, loss in (found or {}).items():
                        losses[name if name not in losses else f"{name}.{number}"] = loss  # two updates, same batch
            self.means[job].add(losses)
            self.means[job].skip(skipped)
        self.number += 1

    def update(self, student: Student, number: int, taught: TaughtBatch) -> Losses | None:
        """One forward, one gradient, one step of one player; returns the losses, or None if the update was skipped."""
        update, terms = student.updates[number], student.terms[number]
        player = student.players[update.player]
        if not student.moves_alike:
            student.let_move(number)
        shares = self._shares(terms, taught.batch)
        before = [buffer.clone() for buffer in student.module.buffers()] if self.skips else []
        sums: Losses = {}
        gradients: list[Gradients] = []  # of task and transfer apart where the rule must see both, else one
        # DDP's own reduction stays off: it would leave out a second backward over one forward.
        with self.fabric.no_backward_sync(student.wrapped, enabled=self.fabric.world_size > 1):
            for part in taught.split(student.micro_batches):
                targets = [self.teacher.target(term.loss, part) for term in terms]
                losses = student.wrapped(part.batch.images, number, targets)
                losses = {t.name: losses[t.name] * share_of_part(t, part.batch, taught.batch) for t in terms}
                sums = {name: loss.detach() + sums.get(name, 0) for name, loss in losses.items()}
                weighted = {
                    t: losses[t.name] * (t.weight.at(self.number, student.stage.steps) * shares[t.name]) for t in terms
                }
                gradients = added(gradients, self._backward(student, number, weighted))
        gradients = self._reduced(gradients)
        met = gradients[0]
        if update.rule.apart:
            task, transfer = gradients
            of_student = [g if own else None for g, own in zip(transfer, player.of_student, strict=True)]
            met = update.rule.meet(task, of_student, step=self.number, decayed=player.decayed)
            # What belongs to the transfer itself, such as regressors, keeps its own gradient.
            met = [m if own else t for m, t, own in zip(met, transfer, player.of_student, strict=True)]
        if self.skips and (lost := not_finite(self.fabric, sums, [*gradients, met])):
            student.skip(lost, before)
            return None
        player.step(met, player.lr.at(self.number, student.stage.steps))
        return sums

    def _backward(self, student: Student, number: int, weighted: Mapping[LossTerm, Tensor]) -> list[Gradients]:
        """The gradients of these losses for the update's player, taken off its parameters."""
        update = student.updates[number]
        player = student.players[update.player]
        task = [loss for term, loss in weighted.items() if term.task]
        transfer = [loss for term, loss in weighted.items() if not term.task]
        sums = [task, transfer] if update.rule.apart else [task + transfer]
        gradients: list[Gradients] = []
        for row in sums:
            again = True if row is not sums[-1] else None
            total = torch.stack(row).sum()
            if not player.second_order:
                self.fabric.backward(total, retain_graph=again)
            else:
                with warnings.catch_warnings():  # of a cycle, which ends when the gradients are taken off
                    warnings.filterwarnings("ignore", message="Using backward.. with create_graph")
                    self.fabric.backward(total, retain_graph=again, create_graph=True)
            gradients.append(player.take_gradients())
        return gradients

    def _shares(self, terms: tuple[LossTerm, ...], batch: Batch) -> dict[str, float]:
        """This process's part of each term's mean over the whole batch, so that N processes give what one gives."""
        means = [term for term in terms if term.loss.reduction == "mean"]
        if self.fabric.world_size == 1 or not means:
            return dict.fromkeys((term.name for term in terms), 1.0)
        counts = torch.tensor([float(count(batch, task)) for task in (True, False)], device=self.fabric.device)
        totals = self.fabric.all_reduce(counts.clone(), reduce_op="sum")
        assert isinstance(totals, Tensor)
        share = [one / total if total else 1.0 for one, total in zip(counts.tolist(), totals.tolist(), strict=True)]
        return {term.name: share[0 if term.task else 1] if term in means else 1.0 for term in terms}

    def _reduced(self, rows: list[Gradients]) -> list[Gradients]:
        """The gradients summed over the processes, in one message."""
        if self.fabric.world_size == 1:
            return rows
        present = [gradient for row in rows for gradient in row if gradient is not None]
        flat = self.fabric.all_reduce(torch.cat([g.flatten() for g in present]), reduce_op="sum")
        assert isinstance(flat, Tensor)
        split = iter(torch.split(flat, [g.numel() for g in present]))
        return [[None if g is None else next(split).view_as(g) for g in row] for row in rows]


def share_of_part(term: LossTerm, part: Batch, batch: Batch) -> float:
    """The factor by which micro-batches' losses add up to the batch's."""
    if len(part.labels) == len(batch.labels) or term.loss.reduction == "sum":
        return 1.0
    return count(part, term.task) / max(1, count(batch, term.task))


def count(batch: Batch, task: bool) -> int:
    """The images that a term sees: those with a label for the task, all for the transfer."""
    return int((batch.labels >= 0).sum()) if task else len(batch.labels)


def added(rows: list[Gradients], more: list[Gradients]) -> list[Gradients]:
    """The sums of two micro-batches' gradients; ``rows`` is empty for the first."""
    if not rows:
        return more
    return [
        [b if a is None else a if b is None else a + b for a, b in zip(*two, strict=True)]
        for two in zip(rows, more, strict=True)
    ]
