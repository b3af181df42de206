"""One job in one stage: its learner and players, and what one update does to them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from flowstill.data.batch import Batch
from flowstill.engine.learner import BuiltTerm, Learner, move_only, parameters_below, parameters_of
from flowstill.engine.pieces import Piece, pieces
from flowstill.engine.player import Mover
from flowstill.errors import RecipeError
from flowstill.features.sections import Pairs
from flowstill.features.taps import Reading
from flowstill.transfer.knowledge import Loss, Setting, Target
from flowstill.transfer.rules import AdaptiveClip, Gradients, clip_global, clip_per_variable, eq14_literal, sigmoid
from flowstill.transfer.stages import Stage, Term, Update

NOTHING: Mapping[Loss, Target] = MappingProxyType({})


class StageRunner:
    """Runs a stage's updates on one job's student.

    student: the job's network, on the device. pairs: the teacher's sections with the student's. setting: what losses
    with networks of their own need. accumulate: in so many parts a batch goes through the networks.
    """

    def __init__(
        self, fabric: Fabric, student: nn.Module, stage: Stage, pairs: Pairs, setting: Setting, accumulate: int = 1
    ) -> None:
        self.fabric, self.stage, self.accumulate = fabric, stage, accumulate
        self.learner = Learner(student, stage.updates, build_terms(stage, pairs, setting)).to(fabric.device).train()
        self._trainable = [(p, p.requires_grad) for p in self.learner.parameters()]
        parts = self.learner.parts()
        self.movers: dict[str, Mover] = {}
        for name, player in stage.players.items():
            modules = [module for role in player.modules for module in parts.get(role, [])]
            self.movers[name] = Mover(player, parameters_of(modules))
            if self.movers[name].second_order and fabric.world_size * accumulate > 1:
                raise RecipeError(
                    f"player {name!r}: 'double_backward' differentiates the gradient of the whole batch, "
                    "which several processes, or 'data.accumulate', take in parts. Use one process and no "
                    "'accumulate', or mode 'recode'."
                )
        self.wrapped = fabric.setup_module(self.learner)
        self._moving = [
            set(self.movers[update.player].parameters) - self._frozen(number, setting.shape)
            for number, update in enumerate(stage.updates)
        ]
        move_only(self.learner, self._moving[0])
        self._alike = all(moving == self._moving[0] for moving in self._moving)

    def slot(self, step: int) -> list[int]:
        """The numbers of the updates that batch ``step`` runs."""
        t = step % len(self.stage.cycle)
        before = sum(len(batch) for batch in self.stage.cycle[:t])
        return list(range(before, before + len(self.stage.cycle[t])))

    def losses(self, updates: Sequence[int]) -> list[Loss]:
        """The losses of these updates, each once."""
        return list(dict.fromkeys(built.loss for update in updates for built in self.learner.terms[update]))

    def update(
        self, number: int, batch: Batch, teacher: Reading | None, step: int, stored: Mapping[Loss, Target] = NOTHING
    ) -> dict[str, Tensor]:
        """One forward, one gradient, one step of one player. Returns the losses, detached, on the device.

        stored: the targets of losses that need no reading.
        """
        update, terms = self.stage.updates[number], self.learner.terms[number]
        mover = self.movers[update.player]
        if not self._alike:
            move_only(self.learner, self._moving[number])
        ranks = {built.name: self._share(built.loss, batch, built.task) for built in terms}
        rows: list[Gradients] = []
        totals: dict[str, Tensor] = {}
        with self._alone():
            for piece in pieces(Piece(batch, teacher, stored), self.accumulate):
                losses = self.wrapped(piece.batch.images, number, self._targets(terms, piece))
                losses = {built.name: losses[built.name] * part_of(built, piece.batch, batch) for built in terms}
                totals = {name: loss.detach() + totals.get(name, 0) for name, loss in losses.items()}
                rows = added(rows, self._backwards(update, terms, losses, ranks, mover, step))
        rows = self._reduced(rows)
        rule = update.rule
        gradients = self._met(rule, rows[0], rows[1], mover, step) if isinstance(rule, AdaptiveClip) else rows[0]
        mover.step(gradients, mover.lr(step, self.stage.steps))
        return totals

    def _met(
        self, rule: AdaptiveClip, task: Gradients, transfer: Gradients, mover: Mover, step: int
    ) -> list[Tensor | None]:
        """The rule's gradient of the student; what belongs to the transfer itself, such as regressors, is not clipped."""
        own = set(self.learner.student.parameters())
        of_student = [gradient if p in own else None for p, gradient in zip(mover.parameters, transfer, strict=True)]
        met = meet(rule, task, of_student, mover, step)
        return [m if p in own else t for p, m, t in zip(mover.parameters, met, transfer, strict=True)]

    def _targets(self, terms: Sequence[BuiltTerm], piece: Piece) -> list[Target]:
        with torch.no_grad(), self.fabric.autocast():
            return [
                piece.stored[built.loss]
                if built.loss in piece.stored
                else built.loss.target(piece.teacher, piece.batch)
                for built in terms
            ]

    def _frozen(self, number: int, shape: Sequence[int]) -> set[nn.Parameter]:
        """What stays as it is in update ``number`` because one of its losses says so."""
        taps = {tap for built in self.learner.terms[number] if (tap := built.loss.frozen_below)}
        return {p for tap in taps for p in parameters_below(self.learner.student, tap, shape)}

    def _alone(self) -> AbstractContextManager[Any]:
        """Keep DDP's own reduction out: a second backward over one forward would not be reduced by it."""
        return self.fabric.no_backward_sync(self.wrapped, enabled=self.fabric.world_size > 1)

    def _backwards(
        self,
        update: Update,
        terms: Sequence[BuiltTerm],
        losses: dict[str, Tensor],
        ranks: dict[str, float],
        mover: Mover,
        step: int,
    ) -> list[Gradients]:
        """The gradients of the task and of the transfer where a rule must see both, else that of all terms together."""
        weighted: dict[bool, list[Tensor]] = {True: [], False: []}
        for built in terms:
            weight = built.term.weight.at(step, self.stage.steps) * ranks[built.name]
            weighted[built.task].append(losses[built.name] * weight)
        apart = isinstance(update.rule, AdaptiveClip)  # which has terms of both kinds
        sums = [weighted[True], weighted[False]] if apart else [weighted[True] + weighted[False]]
        rows: list[Gradients] = []
        for number, row in enumerate(sums):
            self._backward(torch.stack(row).sum(), mover, retain_graph=True if number < len(sums) - 1 else None)
            rows.append(_take(mover))
        return rows

    def _backward(self, loss: Tensor, mover: Mover, retain_graph: bool | None) -> None:
        """The loss's gradient onto the parameters, with a graph of its own where the mover differentiates it."""
        if not mover.second_order:
            self.fabric.backward(loss, retain_graph=retain_graph)
            return
        with warnings.catch_warnings():  # of a cycle that ends when the gradients are taken off the parameters
            warnings.filterwarnings("ignore", message="Using backward.. with create_graph")
            self.fabric.backward(loss, retain_graph=retain_graph, create_graph=True)

    def _share(self, loss: Loss, batch: Batch, task: bool) -> float:
        """This process's part of a mean over the whole batch, so that N processes give what one gives."""
        if self.fabric.world_size == 1 or loss.reduction == "sum":
            return 1.0
        count = float(_count(batch, task))
        total = self.fabric.all_reduce(torch.tensor(count, device=self.fabric.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        return count / float(total)

    def _reduced(self, rows: list[Gradients]) -> list[Gradients]:
        """The gradients summed over the processes, in one message."""
        if self.fabric.world_size == 1:
            return rows
        present = [gradient for row in rows for gradient in row if gradient is not None]
        flat = self.fabric.all_reduce(torch.cat([g.flatten() for g in present]), reduce_op="sum")
        assert isinstance(flat, Tensor)
        split = iter(torch.split(flat, [g.numel() for g in present]))
        return [[None if g is None else next(split).view_as(g) for g in row] for row in rows]

    def close(self) -> None:
        """Let gradients reach again what they reached before the stage."""
        for parameter, trains in self._trainable:
            parameter.requires_grad_(trains)

    def state(self) -> dict[str, Any]:
        """Weights and optimisers, to go on from exactly here."""
        return {
            "learner": self.learner.state_dict(),
            "movers": {name: mover.state() for name, mover in self.movers.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.learner.load_state_dict(state["learner"])
        for name, mover in self.movers.items():
            mover.load(state["movers"][name])


def build_terms(stage: Stage, pairs: Pairs, setting: Setting) -> list[list[BuiltTerm]]:
    """The losses of every update. Terms that say the same share one loss, and so what it owns."""
    built: dict[str, Loss] = {}

    def one(term: Term, task: bool, taken: set[str]) -> BuiltTerm:
        key = repr(term.knowledge)
        if key not in built:
            built[key] = term.knowledge.build(pairs, setting)
        name = term.knowledge.name
        while name in taken:
            name += "'"
        taken.add(name)
        return BuiltTerm(name, term, built[key], task)

    rows = []
    for update in stage.updates:
        taken: set[str] = set()
        rows.append([one(t, True, taken) for t in update.task] + [one(t, False, taken) for t in update.transfer])
    return rows


def part_of(built: BuiltTerm, piece: Batch, batch: Batch) -> float:
    """What a piece's loss counts for in the batch's, so that pieces together give what the batch gives at once."""
    if len(piece.labels) == len(batch.labels) or built.loss.reduction == "sum":
        return 1.0
    return _count(piece, built.task) / max(1, _count(batch, built.task))


def added(rows: list[Gradients], more: list[Gradients]) -> list[Gradients]:
    """The sums of two pieces' gradients; of the first piece, there are no ``rows`` yet."""
    return (
        [
            [b if a is None else a if b is None else a + b for a, b in zip(*two, strict=True)]
            for two in zip(rows, more, strict=True)
        ]
        if rows
        else more
    )


def _count(batch: Batch, task: bool) -> int:
    return int((batch.labels >= 0).sum()) if task else len(batch.labels)


def meet(rule: AdaptiveClip, task: Gradients, transfer: Gradients, mover: Mover, step: int) -> list[Tensor | None]:
    """Task and transfer gradient by the rule. The optimiser adds the L2 term afterwards in every mode."""
    epoch = step // rule.epoch_steps
    if rule.mode == "eq14_literal":
        return eq14_literal(task, transfer, epoch)
    if rule.mode == "global":
        return clip_global(task, transfer, sigmoid(epoch))
    against = mover.decayed(task) if rule.mode == "official" else None
    return clip_per_variable(task, transfer, sigmoid(epoch), against)


def _take(mover: Mover) -> list[Tensor | None]:
    """The parameters' gradients, taken off them."""
    gradients = [parameter.grad for parameter in mover.parameters]
    for parameter in mover.parameters:
        parameter.grad = None
    return gradients
