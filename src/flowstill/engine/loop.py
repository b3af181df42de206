"""The one loop: runs a stage of one job, or of several in lockstep over one teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor

from flowstill.engine.feed import Feed
from flowstill.engine.learner import as_inputs
from flowstill.engine.progress import Watch
from flowstill.engine.runner import StageRunner
from flowstill.engine.seeds import Draws
from flowstill.engine.stored import StoredTargets
from flowstill.features.taps import Reading
from flowstill.recipes.recipe import Recipe
from flowstill.transfer.knowledge import Loss, Target

CURVE_POINTS, DRAWN_POINTS = 10, 50  # evaluations of a stage at most; where the recipe draws its curves
OnStep = Callable[[str, str, int], None]  # job, stage, steps of the stage done


@dataclass
class Meter:
    """Losses that add up on the device until somebody looks; of each, the mean over the steps that had it."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add one step's losses; nothing leaves the device."""
        for name, loss in losses.items():
            self.sums[name] = self.sums[name] + loss if name in self.sums else loss.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """The means since the last look, on the host; starts anew."""
        values = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return values


class StageLoop:
    """Steps ``start`` to the end of a stage, for the jobs in ``runners``; ``stored`` knows their teacher.

    draws: each job's own sequence of random numbers.
    """

    def __init__(
        self,
        fabric: Fabric,
        runners: dict[str, StageRunner],
        stored: StoredTargets,
        feed: Feed,
        draws: Draws,
        *,
        start: int = 0,
        channels_last: bool = False,
    ) -> None:
        self.fabric, self.runners, self.stored, self.feed, self.draws = fabric, runners, stored, feed, draws
        self.step, self.channels_last = start, channels_last
        self.stages = {job: runner.stage for job, runner in runners.items()}
        self.steps = next(iter(self.stages.values())).steps
        self.meters = {job: Meter() for job in runners}
        self._first = first_alike(runners.values())

    def advance(self) -> None:
        """One step: one batch, what the teacher knows of it for all, each job's updates of this slot."""
        batch = replace(
            batch := self.feed(self.step), images=as_inputs(batch.images, self.channels_last), steps=self.steps
        )
        slots = {job: runner.slot(self.step) for job, runner in self.runners.items()}
        wanting = [loss for job, runner in self.runners.items() for loss in runner.losses(slots[job])]
        stored = self.stored(batch, wanting)
        fresh = [loss for loss in wanting if loss not in stored]
        teacher = self.stored.teacher.read(batch.images, fresh)
        known = {**stored, **self._shared(fresh, teacher)}
        for job, runner in self.runners.items():
            losses: dict[str, Tensor] = {}
            with self.draws.turn_of(job):
                for number in slots[job]:
                    for name, loss in runner.update(number, batch, teacher, self.step, known).items():
                        key = name if name not in losses else f"{name}.{number}"  # another update's, same batch
                        losses[key] = loss
            self.meters[job].add(losses)
        self.step += 1

    def _shared(self, losses: Sequence[Loss], teacher: Reading | None) -> dict[Loss, Target]:
        """The targets that several jobs' losses have in common, each made once."""
        groups: dict[Loss, list[Loss]] = {}
        for loss in dict.fromkeys(losses):
            if loss in self._first:
                groups.setdefault(self._first[loss], []).append(loss)
        targets = {
            first: self.stored.teacher.target(first, teacher) for first, alike in groups.items() if len(alike) > 1
        }
        return {loss: target for first, target in targets.items() for loss in groups[first]}

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the stage depends on."""
        return {
            "step": self.step,
            "runners": {job: runner.state() for job, runner in self.runners.items()},
            "meters": {job: {"sums": m.sums, "counts": m.counts} for job, m in self.meters.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; the feed must have been made for its step."""
        for job, runner in self.runners.items():
            runner.load(state["runners"][job])
            saved = state["meters"][job]
            sums = {name: total.to(self.fabric.device) for name, total in saved["sums"].items()}
            self.meters[job] = Meter(sums, saved["counts"])


def first_alike(runners: Iterable[StageRunner]) -> dict[Loss, Loss]:
    """Of each loss whose target depends on the teacher's reading alone: the first loss of the group with the same target."""
    firsts: dict[tuple[object, ...], Loss] = {}
    found = {}
    for built in (built for runner in runners for row in runner.learner.terms for built in row):
        loss = built.loss
        if loss.storable:
            alike = (repr(built.term.knowledge), type(loss), loss.teacher_taps, loss.teacher_logits)
            found[loss] = firsts.setdefault(alike, loss)
    return found


class Pace:
    """Images a second since the last look."""

    def __init__(self, batch: int) -> None:
        self.batch, self._since, self._steps = batch, time.perf_counter(), 0

    def step(self) -> None:
        """One more batch is done."""
        self._steps += 1

    def speed(self) -> float:
        """Images a second; starts anew."""
        now = time.perf_counter()
        speed = self.batch * self._steps / max(now - self._since, 1e-9)
        self._since, self._steps = now, 0
        return speed


def marks(steps: int, count: int) -> set[int]:
    """``count`` steps spread over a stage, its last among them.

    >>> sorted(marks(100, 4)), sorted(marks(2, 4))
    ([25, 50, 75, 100], [1, 2])
    """
    return {max(1, round(steps * k / count)) for k in range(1, count + 1)}


__all__ = ["Meter", "OnStep", "Pace", "StageLoop", "Watch", "marks"]


def evaluations(recipe: Recipe, steps: int, tested: int) -> int:
    """How often a stage of the recipe that trains the task is evaluated on ``tested`` images, its end included.

    Seldom where it would take more than a tenth of the stage's time, or, if the recipe is there to draw its curves, as long
    as the stage. An update takes about three forwards' time.

    >>> from flowstill.recipes.load import load_recipe
    >>> [evaluations(load_recipe("fsp-table3"), steps, 10_000) for steps in (64_000, 320, 10)]
    [10, 2, 1]
    >>> [evaluations(load_recipe("fsp-figure3"), steps, 10_000) for steps in (64_000, 320, 10)]
    [50, 24, 1]
    """
    most, share = (DRAWN_POINTS, 1.0) if recipe.figure == "curves" else (CURVE_POINTS, 0.1)
    return max(1, min(most, int(share * 3 * steps * recipe.data.batch / max(1, tested))))
