"""One job in one stage: its learner and players, and what one update does to them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from flowstill.data.batch import Batch
from flowstill.engine.learner import BuiltTerm, Learner, move_only, parameters_of
from flowstill.engine.players import Mover
from flowstill.errors import RecipeError
from flowstill.knowledge.base import Loss, Setting
from flowstill.sections import Pairs
from flowstill.taps import Reading, Tap
from flowstill.transfer.gradients import Gradients, clip_global, clip_per_variable, eq14_literal, sigmoid
from flowstill.transfer.stages import AdaptiveClip, Stage, Term, Update


class StageRunner:
    """Runs a stage's updates on one job's student.

    student: the job's network, on the device. pairs: the teacher's sections with the student's. setting: what losses
    with networks of their own need.
    """

    def __init__(self, fabric: Fabric, student: nn.Module, stage: Stage, pairs: Pairs, setting: Setting) -> None:
        self.fabric, self.stage = fabric, stage
        self.learner = Learner(student, stage.updates, build_terms(stage, pairs, setting)).to(fabric.device).train()
        self._trainable = [(p, p.requires_grad) for p in self.learner.parameters()]
        parts = self.learner.parts()
        self.movers: dict[str, Mover] = {}
        for name, player in stage.players.items():
            modules = [module for role in player.modules for module in parts.get(role, [])]
            self.movers[name] = Mover(player, parameters_of(modules))
            if self.movers[name].second_order and fabric.world_size > 1:
                raise RecipeError(f"player {name!r}: recode mode 'double_backward' differentiates the whole batch's "
                                  "gradient, of which each process has a part. Use one, or mode 'recode'.")  # fmt: skip
        self.wrapped = fabric.setup_module(self.learner)
        if len(self.movers) == 1:
            move_only(self.learner, set(next(iter(self.movers.values())).parameters))

    def slot(self, step: int) -> list[int]:
        """The numbers of the updates that batch ``step`` runs."""
        t = step % len(self.stage.cycle)
        before = sum(len(batch) for batch in self.stage.cycle[:t])
        return list(range(before, before + len(self.stage.cycle[t])))

    def teacher_needs(self, updates: Sequence[int]) -> tuple[list[Tap], bool]:
        """Which teacher taps these updates read, and whether the logits too."""
        losses = [built.loss for update in updates for built in self.learner.terms[update]]
        taps = list(dict.fromkeys(tap for loss in losses for tap in loss.teacher_taps))
        return taps, any(loss.teacher_logits for loss in losses)

    def update(self, number: int, batch: Batch, teacher: Reading | None, step: int) -> dict[str, Tensor]:
        """One forward, one gradient, one step of one player. Returns the losses, detached, on the device."""
        update, terms = self.stage.updates[number], self.learner.terms[number]
        mover = self.movers[update.player]
        if len(self.movers) > 1:
            move_only(self.learner, set(mover.parameters))
        with torch.no_grad(), self.fabric.autocast():
            targets = [built.loss.target(teacher, batch) for built in terms]
        with self._alone():
            losses = self.wrapped(batch.images, number, targets)
            gradients = self._gradients(update, terms, losses, mover, batch, step)
        mover.step(gradients, mover.lr(step, self.stage.steps))
        return {name: loss.detach() for name, loss in losses.items()}

    def _alone(self) -> AbstractContextManager[Any]:
        """Keep DDP's own reduction out: a second backward over one forward would not be reduced by it."""
        return self.fabric.no_backward_sync(self.wrapped, enabled=self.fabric.world_size > 1)

    def _gradients(
        self,
        update: Update,
        terms: Sequence[BuiltTerm],
        losses: dict[str, Tensor],
        mover: Mover,
        batch: Batch,
        step: int,
    ) -> list[Tensor | None]:
        """The gradient that the rule makes of the task's and the transfer's, both summed over the processes first."""
        weighted: dict[bool, list[Tensor]] = {True: [], False: []}
        for built in terms:
            share = self._share(built.loss, batch, built.task)
            weighted[built.task].append(losses[built.name] * (built.term.weight.at(step, self.stage.steps) * share))
        task, transfer = (torch.stack(weighted[kind]).sum() if weighted[kind] else None for kind in (True, False))
        if not isinstance(update.rule, AdaptiveClip) or task is None or transfer is None:
            total = task if transfer is None else transfer if task is None else task + transfer
            assert total is not None
            self._backward(total, mover)
            return self._reduced(mover)[0]
        self._backward(task, mover, retain_graph=True)
        first = _take(mover)
        self._backward(transfer, mover)
        both = self._reduced(mover, first)
        return meet(update.rule, both[1], both[0], mover, step)

    def _backward(self, loss: Tensor, mover: Mover, retain_graph: bool | None = None) -> None:
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
        count = float((batch.labels >= 0).sum() if task else len(batch.labels))
        total = self.fabric.all_reduce(torch.tensor(count, device=self.fabric.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        return count / float(total)

    def _reduced(self, mover: Mover, *others: list[Tensor | None]) -> list[list[Tensor | None]]:
        """The gradients now on the parameters, then ``others``, summed over the processes in one message."""
        rows = [_take(mover), *others]
        if self.fabric.world_size == 1:
            return rows
        present = [gradient for row in rows for gradient in row if gradient is not None]
        flat = self.fabric.all_reduce(torch.cat([g.flatten() for g in present]), reduce_op="sum")
        assert isinstance(flat, Tensor)
        pieces = iter(torch.split(flat, [g.numel() for g in present]))
        return [[None if g is None else next(pieces).view_as(g) for g in row] for row in rows]

    def close(self) -> None:
        """Let gradients reach again what they reached before the stage."""
        for parameter, trains in self._trainable:
            parameter.requires_grad_(trains)

    def state(self) -> dict[str, Any]:
        """Weights and optimisers, to go on from exactly here."""
        return {"learner": self.learner.state_dict(),
                "movers": {name: mover.state() for name, mover in self.movers.items()}}  # fmt: skip

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
