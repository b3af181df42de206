"""Runs a recipe's jobs, one group after another, and keeps the run folder ready to continue a killed run."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowstill.engine.context import Context
from flowstill.engine.finite import weights_not_finite
from flowstill.engine.networks import placed, ready
from flowstill.engine.resuming import forget_stages, stage_file
from flowstill.engine.seeds import derive, random_states
from flowstill.engine.stage import StageRun
from flowstill.nets import fit_weights
from flowstill.recipes.recipe import AfterStage, Job, Weights
from flowstill.runs import JobSummary, Scores, Summary
from flowstill.runs.folder import student_of
from flowstill.runs.kept import check_network

_log = logging.getLogger("flowstill")


class Session:
    """All jobs of a run, to their end."""

    def __init__(self, context: Context, summary: Summary) -> None:
        self.context, self.summary = context, summary
        self.recipe, self.writer = context.recipe, context.writer
        self.networks: dict[str, nn.Module] = {}  # of finished jobs

    def run(self) -> None:
        """All jobs to their end, from the saved state on if there is one."""
        context = self.context
        state = self.writer.load_state()
        if state is not None:
            self.summary = Summary.from_json(state["summary"])
        grown = state is None and bool(self.summary.jobs)  # jobs were added since, or the state is lost
        if context.writes and grown:
            self.writer.metrics.keep_jobs(self.summary.jobs)
        elif context.writes:
            self.writer.metrics.truncate(state["metrics"] if state else 0)
            self.writer.write_summary(self.summary)
        begun = tuple(state["group"]) if state else ()
        with context.interruption:
            if grown:
                self._save(())
            for group in self._groups_left(begun):
                if context.writes and group != begun:
                    forget_stages(self.writer.path, group)
                self._run_group(group, state if group == begun else None)
                self._save(group)
            for name, ensemble in self.recipe.ensembles.items():
                if name in self.summary.ensembles:
                    continue
                if lost := [job for job in ensemble.jobs if self.summary.jobs[job].missing]:
                    self.summary.ensembles[name] = Scores(not_run=self._because_of(lost[0]))
                    continue
                members = {job: self.network(job) for job in ensemble.jobs}
                found = context.record.ensemble(members, ensemble.mean)
                self.summary.ensembles[name] = Scores(found["accuracy"], found["loss"], found.get("top5"))
        self.summary.finished = True
        context.stores.remove()
        if context.writes:
            self.writer.metrics.flush()
            self.writer.write_summary(self.summary)
            self.writer.drop_state()

    def _groups_left(self, begun: tuple[str, ...]) -> list[tuple[str, ...]]:
        """The groups still to run: first the one in the saved state, then the others, without finished jobs."""
        over = {*self.summary.jobs, *begun}
        left = [tuple(name for name in group if name not in over) for group in self.recipe.groups()]
        return [group for group in (begun, *left) if group]

    def _run_group(self, group: tuple[str, ...], state: dict[str, Any] | None) -> None:
        """Jobs in lockstep: stage by stage, each with players and optimisers of its own."""
        jobs = {name: self.recipe.jobs[name] for name in group if not self._left_out(name)}
        networks = {name: network for name, job in jobs.items() if (network := self._sound_start(name, job))}
        if not networks:
            return
        first = jobs[next(iter(networks))]
        count = 0 if first.weights else len(first.stages)
        earlier = state["seconds"] if state else 0.0
        begun = time.perf_counter()

        def seconds() -> float:
            return earlier + time.perf_counter() - begun

        def save(stage: StageRun) -> None:
            self._note_diverged(stage, seconds())
            self._save(tuple(stage.step.students), stage, seconds())

        for number in range(state["stage"] if state else 0, count):
            saved = state if state and state["stage"] == number else None
            needed = first.teacher and self._needs_teacher(networks, number)
            teacher = self.network(first.teacher) if first.teacher and needed else None
            stage = StageRun(self.context, networks, number, teacher, saved)
            stage.run(save)
            self._note_diverged(stage, seconds())
            networks = {name: network for name, network in networks.items() if name not in stage.diverged}
            if not networks:
                return
            for name, network in networks.items():
                self._keep_for_others(name, jobs[name].stages[number].name, network)
        for name, network in networks.items():
            self._finish(name, jobs[name], network, seconds())

    def _left_out(self, name: str) -> bool:
        """Whether a job cannot start because one that it builds on diverged; the summary then says so."""
        start = self.recipe.jobs[name].start
        for other in self.recipe.builds_on(name):
            if not self.summary.jobs[other].missing:
                continue
            kept = isinstance(start, AfterStage) and stage_file(self.writer.path, self.recipe, other, start.stage)
            if kept and kept.exists() and other != self.recipe.jobs[name].teacher:
                continue  # it diverged later than that
            self.summary.jobs[name] = replace(self._facts_of(name), not_run=self._because_of(other), steps=0)
            self.context.progress.say(f"{name}: {self.summary.jobs[name].not_run}")
            return True
        return False

    def _because_of(self, other: str) -> str:
        return (
            f"not run, as {other!r} {'diverged' if self.summary.jobs[other].missing == 'diverged' else 'was not run'}"
        )

    def _sound_start(self, name: str, job: Job) -> nn.Module | None:
        """The job's network as its first stage finds it; None, and the summary says so, if its weights are not finite."""
        network = self._start(name, job)
        if not (lost := weights_not_finite(network)):
            return network
        why = f"its weights are not finite before training: {lost[0]!r}" + f" and {len(lost) - 1} more" * (
            len(lost) > 1
        )
        self._diverge(name, why, 0, 0.0)
        return None

    def _note_diverged(self, stage: StageRun, seconds: float) -> None:
        """Put the jobs that a stage stopped into the summary."""
        for name, why in stage.diverged.items():
            if name not in self.summary.jobs:
                earlier = sum(one.steps for one in self.recipe.jobs[name].stages[: stage.number])
                self._diverge(name, why, earlier + stage.stopped_at[name], seconds)

    def _diverge(self, name: str, why: str, steps: int, seconds: float) -> None:
        """Put a job without a network into the summary."""
        self.summary.jobs[name] = replace(self._facts_of(name), diverged=why, steps=steps, seconds=round(seconds, 2))
        if self.context.writes:
            self.writer.metrics.end_job(name)
        self.context.progress.say(f"{name}: diverged: {why}")

    def _needs_teacher(self, group: Iterable[str], number: int) -> bool:
        return any(self.recipe.jobs[name].stages[number].needs_teacher for name in group)

    def _start(self, name: str, job: Job) -> nn.Module:
        """The job's network as its first stage finds it."""
        torch.manual_seed(derive(self.recipe.seed, job.seed, "init"))
        network = self._built(name)
        if job.weights:
            fit_weights(network, job.weights)
        elif isinstance(job.start, Weights):
            fit_weights(network, job.start.weights)
        elif isinstance(job.start, AfterStage):
            file = stage_file(self.writer.path, self.recipe, job.start.job, job.start.stage)
            fit_weights(network, self._as_saved(file))
        return placed(network, self.context.fabric, self.context.work.precision)

    def network(self, name: str) -> nn.Module:
        """A finished job's network, frozen, in eval mode."""
        if name not in self.networks:
            with torch.random.fork_rng(devices=[]):  # the fresh weights, soon replaced, are drawn from it
                network = self._built(name)
            job = self.recipe.jobs[name]
            if name not in self.context.work.networks or job.stages or job.start or job.weights:
                fit_weights(network, self._as_saved(self.writer.path / f"{name}.safetensors"))
            self.networks[name] = placed(network, self.context.fabric, self.context.work.precision)
        nn.Module.requires_grad_(self.networks[name], False)  # TorchScript has no method of its own
        return self.networks[name].eval()

    def _as_saved(self, file: Path) -> Path:
        """The file of a network that this run saved, after checking that it has not changed."""
        done = self.summary.jobs.get(file.stem)
        sha256 = done.sha256 if done else self.summary.kept.get(file.stem)
        if sha256:
            check_network(file, sha256)
        return file

    def _built(self, name: str) -> nn.Module:
        """A job's network, fresh; a copy of one that is given as an object."""
        job, data = self.recipe.jobs[name], self.context.data
        given = self.context.work.networks.get(name)
        shape = self.context.work.interfaces[name].shape
        return ready(given, job.network, shape, len(data.classes), trains=job.trains)

    def _finish(self, name: str, job: Job, network: nn.Module, seconds: float) -> None:
        """Measure and save a finished network."""
        stages = () if job.weights else job.stages
        steps = sum(stage.steps for stage in stages)
        last, reached = (stages[-1].name, stages[-1].steps) if stages else ("", 0)
        scores = self.context.record.score(name, last, reached, network) if self.context.plans[name].measured else {}
        accuracy, loss, top5 = (scores.get(metric) for metric in ("accuracy", "loss", "top5"))
        if loss is not None and (
            math.isnan(loss) or (steps and math.isinf(loss))
        ):  # a given teacher may rule out classes
            self._diverge(name, "after training: its loss on the test images is not finite", steps, seconds)
            return
        self.summary.jobs[name] = replace(
            self._facts_of(name), accuracy=accuracy, loss=loss, top5=top5, steps=steps, seconds=round(seconds, 2)
        )
        self.networks[name] = network
        if self.context.writes:
            self.writer.metrics.end_job(name)
            self.summary.jobs[name].sha256 = self._keep(name, network, scores.get("accuracy"))
            if steps:
                self._doubt(name, scores.get("accuracy"))
        result = f"{scores['accuracy']:.2f} %" if scores else "not measured, since its classes are not the data's,"
        self.context.progress.say(f"{name}: {result} after {steps} updates, {seconds:.0f} s")
        self.context.fabric.barrier()

    def _doubt(self, name: str, accuracy: float | None) -> None:
        """Warn about a teacher that is no better than chance after training."""
        teaches = any(job.teacher == name for job in self.recipe.jobs.values())
        chance = 100 / len(self.context.data.classes)
        noise = 200 * math.sqrt(chance / 100 * (1 - chance / 100) / max(1, self.context.data.test_size))
        if teaches and accuracy is not None and accuracy <= chance + noise and not self.context.data.synthetic:
            _log.warning(
                "teacher %r does no better than chance: %.1f %% of the test images are classified correctly (chance: "
                "%.1f %%). It can only teach noise. Try another learning rate, or more updates.",
                name,
                accuracy,
                chance,
            )

    def _keep(self, name: str, network: nn.Module, accuracy: float | None) -> str:
        """Save a finished network with the facts that a reader of the file needs; returns the file's SHA-256."""
        preprocessing, data = self.context.work.interfaces[name].own, self.context.data
        metadata = {"preprocessing": json.dumps(asdict(preprocessing)), "data": data.spec.name}
        if accuracy is not None:
            metadata |= {"accuracy": f"{accuracy:.2f}", "classes": json.dumps(data.classes)}
        if name == student_of(self.recipe.jobs):
            self.writer.write_preprocessing(preprocessing, data.classes)
        return self.writer.save_network(name, network.state_dict(), metadata)

    def _facts_of(self, name: str) -> JobSummary:
        """What is known of a job before it runs."""
        job, counts = self.recipe.jobs[name], self.context.plans[name].counts
        return JobSummary(
            network=job.network.name,
            about=job.about,
            labels=None if job.weights or not job.stages else job.labels or self.recipe.data.labels,
            parameters=counts.parameters,
            macs=counts.macs,
            teacher=job.teacher,
            paper=self.recipe.paper.accuracy.get(name) if self.recipe.paper else None,
        )

    def _keep_for_others(self, name: str, stage: str, network: nn.Module) -> None:
        """Save the network for other jobs that start from this stage; after its last stage it is saved anyway."""
        wanted = [AfterStage(name, stage) == job.start for job in self.recipe.jobs.values()]
        if self.context.writes and any(wanted) and stage != self.recipe.jobs[name].stages[-1].name:
            kept = stage_file(self.writer.path, self.recipe, name, stage).stem
            self.summary.kept[kept] = self.writer.save_network(kept, network.state_dict())
        self.context.fabric.barrier()

    def _save(self, group: tuple[str, ...], stage: StageRun | None = None, seconds: float = 0.0) -> None:
        """Write the state. Without a stage: the group is finished."""
        context = self.context
        state = stage.state() if stage else {"stage": 0, "rng": random_states(context.fabric), "draws": {}}
        if context.writes:
            self.writer.metrics.flush()
            self.writer.save_state(
                {
                    "summary": self.summary.to_json(),
                    "metrics": self.writer.metrics.position(),
                    "group": list(group) if stage else [],
                    "seconds": seconds,
                    **state,
                }
            )
            self.writer.write_summary(self.summary)
        context.saved()
