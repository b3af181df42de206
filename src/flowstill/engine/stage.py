"""One stage of the jobs that go together, from its first step or a saved one to its last."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from flowstill.engine.context import Context
from flowstill.engine.feed import Feed
from flowstill.engine.finite import LOOK_EVERY, MOST_SKIPPED, advice, diverged
from flowstill.engine.networks import fresh_head
from flowstill.engine.seeds import RandomSequences, derive, random_states, restore_random_states
from flowstill.engine.step import RunningMeans, Step
from flowstill.engine.student import Student
from flowstill.engine.teacher import Teacher
from flowstill.errors import RunError, option
from flowstill.files import readable_size
from flowstill.recipes.recipe import Recipe
from flowstill.recipes.storage import most_bytes
from flowstill.transfer.knowledge import Setting

_log = logging.getLogger("flowstill")
LOG_POINTS = 50  # rows of losses in a stage
CURVE_POINTS, DRAWN_POINTS = 10, 50  # evaluations of a stage at most; where the recipe draws its curves


class StageRun:
    """A stage's steps for one job, or for several in lockstep over one teacher.

    Args:
        networks: the jobs' networks, by name; all have the same steps and batches.
        number: of the stage among the jobs' stages.
        teacher: their teacher's network, frozen; None if no loss needs one.
        state: a saved state of this stage, to continue from.
    """

    def __init__(
        self,
        context: Context,
        networks: Mapping[str, nn.Module],
        number: int,
        teacher: nn.Module | None,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.context, self.number, self.title = context, number, " + ".join(networks)
        fabric, recipe, data = context.fabric, context.recipe, context.data
        stages = {name: recipe.jobs[name].stages[number] for name in networks}
        self.stage = next(iter(stages.values()))
        lead = recipe.jobs[next(iter(networks))]
        seed = derive(recipe.seed, lead.seed, self.stage.name)
        shapes = {name: interface.shape for name, interface in context.work.interfaces.items()}
        views = {name: interface for name, interface in context.work.interfaces.items() if interface.differs}
        lead_teacher = lead.teacher if teacher is not None else None
        students, sequences = {}, RandomSequences(fabric)
        for name, network in networks.items():
            torch.manual_seed(seed)  # for each, so that it draws what it would draw alone
            if stages[name].fresh_head:
                fresh_head(network)
            setting = Setting(
                teacher,
                network,
                shapes[name],
                len(data.classes),
                seed,
                teacher_shape=shapes[lead_teacher] if lead_teacher else None,
            )
            pairs = context.plans[name].pairs
            students[name] = Student(
                fabric, network, stages[name], pairs, setting, recipe.data.accumulate, views.get(name)
            )
            sequences.add(name)
        start = state["loop"]["step"] if state else 0
        reader = Teacher(fabric, teacher, context.channels_last, students.values(), views.get(lead_teacher or ""))
        reader.stored = context.stores.open_for(reader, students.values())
        if reader.stored is not None:
            files = (file for name in networks for file in context.plans[name].stored[stages[name].name])
            most = readable_size(most_bytes(files))
            context.progress.say(f"{self.title}, {self.stage.name}: storing the teacher's knowledge, at most {most}")
        feed = Feed(
            fabric,
            data,
            self.stage,
            seed=derive(recipe.seed, lead.seed, self.stage.name, "order"),
            start=start,
            labels=lead.labels,
            channels_last=context.channels_last,
        )
        self.step = Step(fabric, students, reader, feed, sequences, start, recipe.on_nonfinite == "skip")
        self.diverged: dict[str, str] = {}  # jobs that were stopped -> why
        self.stopped_at: dict[str, int] = {}
        if state:
            try:
                self._load(state)
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                reason = str(error).strip().split("\n")[-1].strip()[:200]
                raise RunError(
                    f"Cannot resume from the state in {str(context.writer.path)!r}: it does not fit {self.title!r} "
                    f"({type(error).__name__}: {reason}). It belongs to another run or version of flowstill. Restore it "
                    f"from a copy, or give another {option('out')}."
                ) from error

    def run(self, save: Callable[[StageRun], None]) -> None:
        """All steps that are left.

        Args:
            save: keeps ``state()`` whenever it is time to.
        """
        context, stage, step = self.context, self.stage, self.step
        context.progress.stage(self.title, stage.name, step.number, stage.steps)
        logged = marks(stage.steps, LOG_POINTS)
        measured = marks(stage.steps, evaluations(context.recipe, stage.steps, context.data.test_size))
        since, counted = time.perf_counter(), 0
        while step.number < stage.steps and step.students:
            step()
            counted += 1
            context.progress.step()
            self._stop_diverged(step.number in logged)
            if step.number in logged:
                now = time.perf_counter()
                context.record.losses(step, speed=context.recipe.data.batch * counted / max(now - since, 1e-9))
                since, counted = now, 0
            if step.number in measured and step.number < stage.steps:
                context.record.curve(step)
            if context.work.on_step and step.students:
                context.work.on_step(next(iter(step.students)), stage.name, step.number)
            if context.should_save(step.number in logged) and step.number < stage.steps and step.students:
                save(self)
        context.record.losses(step)
        for student in step.students.values():
            student.close()

    def _stop_diverged(self, due: bool) -> None:
        """Stop the jobs with losses or weights that are not finite; the others continue. Looks only now and then.

        Args:
            due: look now.
        """
        step = self.step
        skipping = any(means.in_a_row >= MOST_SKIPPED for means in step.means.values())
        if not (due or skipping or step.number % LOOK_EVERY == 0):
            return
        for job, why in diverged(step).items():
            self.diverged[job] = f"{self.stage.name}, update {step.number}: {why}"
            self.stopped_at[job] = step.number
            student = step.students.pop(job)
            student.close()
            del step.means[job]
            if self.context.writes:
                hint = advice(job, student, bf16=self.context.work.precision.dtype == "bf16")
                _log.error("job %r is stopped: %s. %s", job, self.diverged[job], hint)

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the stage depends on. All processes ask together."""
        step = self.step
        return {
            "stage": self.number,
            "rng": random_states(self.context.fabric),
            "draws": step.sequences.state(),
            "loop": {
                "step": step.number,
                "runners": {job: student.state() for job, student in step.students.items()},
                "meters": {job: dict(vars(means)) for job, means in step.means.items()},
            },
        }

    def _load(self, state: dict[str, Any]) -> None:
        """Continue from ``state``; the feed was made for its step."""
        loop, device = state["loop"], self.context.fabric.device
        for job, student in self.step.students.items():
            student.load(loop["runners"][job])
            sums = {name: total.to(device) for name, total in loop["meters"][job]["sums"].items()}
            self.step.means[job] = RunningMeans(**{**loop["meters"][job], "sums": sums})
        restore_random_states(self.context.fabric, state["rng"])
        self.step.sequences.load(state["draws"])


def marks(steps: int, count: int) -> set[int]:
    """``count`` steps spread over a stage, its last among them.

    >>> sorted(marks(100, 4)), sorted(marks(2, 4))
    ([25, 50, 75, 100], [1, 2])
    """
    return {max(1, round(steps * k / count)) for k in range(1, count + 1)}


def evaluations(recipe: Recipe, steps: int, tested: int) -> int:
    """How often a stage that trains the task is evaluated on ``tested`` images, its end included.

    Less often if evaluation would take more than a tenth of the stage's time, or, if the recipe is there to draw curves,
    more than the stage's time. An update takes about as long as three forwards.

    >>> from flowstill.recipes.load import load_recipe
    >>> [evaluations(load_recipe("fsp-table3"), steps, 10_000) for steps in (64_000, 320, 10)]
    [10, 2, 1]
    >>> [evaluations(load_recipe("fsp-figure3"), steps, 10_000) for steps in (64_000, 320, 10)]
    [50, 24, 1]
    """
    most, share = (DRAWN_POINTS, 1.0) if recipe.figure == "curves" else (CURVE_POINTS, 0.1)
    return max(1, min(most, int(share * 3 * steps * recipe.data.batch / max(1, tested))))
