"""Runs a recipe's jobs, one group after another, and keeps the run folder so that a killed run continues where it was."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowstill.engine.context import Context
from flowstill.engine.networks import copy_of, placed
from flowstill.engine.resuming import forget_stages, stage_file
from flowstill.engine.seeds import derive, random_states
from flowstill.engine.stage import StageRun
from flowstill.nets import build, load_weights
from flowstill.recipes.recipe import AfterStage, Job, Weights
from flowstill.runs import JobSummary, Scores, Summary
from flowstill.runs.folder import check_network


class Session:
    """All jobs of a run, to their end."""

    def __init__(self, context: Context, summary: Summary) -> None:
        self.context, self.summary = context, summary
        self.recipe, self.writer = context.recipe, context.writer
        self.networks: dict[str, nn.Module] = {}  # those that are finished

    def run(self) -> None:
        """All jobs to their end, from the saved state on if there is one."""
        context = self.context
        state = self.writer.load_state()
        if state is not None:
            self.summary = Summary.from_json(state["summary"])
        grown = state is None and bool(self.summary.jobs)  # it has got more jobs since, or has lost its state
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
                members = [self.network(job) for job in ensemble.jobs]
                self.summary.ensembles[name] = Scores(**context.record.ensemble(members, ensemble.mean))
        self.summary.finished = True
        context.stores.remove()
        if context.writes:
            self.writer.metrics.flush()
            self.writer.write_summary(self.summary)
            self.writer.drop_state()

    def _groups_left(self, begun: tuple[str, ...]) -> list[tuple[str, ...]]:
        """What is still to be run: first the group that the saved state is of, then the others without what is done."""
        over = {*self.summary.jobs, *begun}
        left = [tuple(name for name in group if name not in over) for group in self.recipe.groups()]
        return [group for group in (begun, *left) if group]

    def _run_group(self, group: tuple[str, ...], state: dict[str, Any] | None) -> None:
        """Jobs in lockstep: stage by stage, each with players and optimisers of its own."""
        jobs = {name: self.recipe.jobs[name] for name in group}
        first = jobs[group[0]]
        networks = {name: self._start(name, job) for name, job in jobs.items()}
        count = 0 if first.weights else len(first.stages)
        earlier = state["seconds"] if state else 0.0
        begun = time.perf_counter()

        def save(stage: StageRun) -> None:
            self._save(group, stage, earlier + time.perf_counter() - begun)

        for number in range(state["stage"] if state else 0, count):
            saved = state if state and state["stage"] == number else None
            teacher = self.network(first.teacher) if first.teacher and self._needs_teacher(group, number) else None
            StageRun(self.context, networks, number, teacher, saved).run(save)
            for name in group:
                self._keep_for_others(name, jobs[name].stages[number].name, networks[name])
        seconds = earlier + time.perf_counter() - begun
        for name, network in networks.items():
            self._finish(name, jobs[name], network, seconds)

    def _needs_teacher(self, group: tuple[str, ...], number: int) -> bool:
        return any(self.recipe.jobs[name].stages[number].needs_teacher for name in group)

    def _start(self, name: str, job: Job) -> nn.Module:
        """The job's network as its first stage finds it."""
        torch.manual_seed(derive(self.recipe.seed, job.seed, "init"))
        network = self._built(name)
        if job.weights:
            load_weights(network, job.weights)
        elif isinstance(job.start, Weights):
            load_weights(network, job.start.weights)
        elif isinstance(job.start, AfterStage):
            file = stage_file(self.writer.path, self.recipe, job.start.job, job.start.stage)
            load_weights(network, self._as_saved(file))
        return placed(network, self.context.fabric, self.context.work.precision)

    def network(self, name: str) -> nn.Module:
        """A finished job's network, frozen, in eval mode."""
        if name not in self.networks:
            with torch.random.fork_rng(devices=[]):  # the fresh weights, soon replaced, are drawn from it
                network = self._built(name)
            load_weights(network, self._as_saved(self.writer.path / f"{name}.safetensors"))
            self.networks[name] = placed(network, self.context.fabric, self.context.work.precision)
        return self.networks[name].requires_grad_(False).eval()

    def _as_saved(self, file: Path) -> Path:
        """The file of a network that this run saved, once it is known to be as it was."""
        done = self.summary.jobs.get(file.stem)
        sha256 = done.sha256 if done else self.summary.kept.get(file.stem)
        if sha256:
            check_network(file, sha256)
        return file

    def _built(self, name: str) -> nn.Module:
        """A job's network, fresh; a copy of one that is given as an object."""
        if name in self.context.work.networks:
            return copy_of(self.context.work.networks[name])
        spec, data = self.recipe.jobs[name].network, self.context.data
        return build(spec, num_classes=len(data.classes), in_channels=data.shape[0])

    def _finish(self, name: str, job: Job, network: nn.Module, seconds: float) -> None:
        """Measure and keep a network that is done."""
        stages = () if job.weights else job.stages
        steps, plan = sum(stage.steps for stage in stages), self.context.plans[name]
        last, reached = (stages[-1].name, stages[-1].steps) if stages else ("", 0)
        scores: dict[str, Any] = {}
        if plan.measured:
            scores |= self.context.record.score(name, last, reached, network)
        paper = self.recipe.paper.accuracy.get(name) if self.recipe.paper else None
        self.summary.jobs[name] = JobSummary(
            **scores,
            network=job.network.name,
            about=job.about,
            labels=(job.labels or self.recipe.data.labels) if stages else None,
            parameters=plan.counts.parameters,
            macs=plan.counts.macs,
            steps=steps,
            seconds=round(seconds, 2),
            teacher=job.teacher,
            paper=paper,
        )
        self.networks[name] = network
        if self.context.writes:
            self.writer.metrics.end_job(name)
            self.summary.jobs[name].sha256 = self.writer.save_network(name, network.state_dict())
        result = f"{scores['accuracy']:.2f} %" if scores else "not measured, as it has other classes than the data,"
        self.context.progress.say(f"{name}: {result} after {steps} updates, {seconds:.0f} s")
        self.context.fabric.barrier()

    def _keep_for_others(self, name: str, stage: str, network: nn.Module) -> None:
        """Other jobs may start from what this network is now; after its last stage it is kept anyway."""
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
