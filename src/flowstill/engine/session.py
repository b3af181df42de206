"""Runs a recipe's jobs, one group after another, and keeps the run folder so that a killed run goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from torch import nn

from flowstill.engine.feed import Feed
from flowstill.engine.interruption import Interruption
from flowstill.engine.loop import OnStep, Pace, StageLoop, evaluations, marks
from flowstill.engine.networks import copy_of, fresh_head, placed
from flowstill.engine.precision import Precision
from flowstill.engine.progress import Watch
from flowstill.engine.record import Record
from flowstill.engine.resuming import forget_stages, stage_file
from flowstill.engine.runner import StageRunner
from flowstill.engine.seeds import Draws, derive, random_states, restore_random_states
from flowstill.engine.stored import Stores
from flowstill.engine.teacher import Teacher
from flowstill.nets import build, load_weights
from flowstill.recipes.check import JobPlan
from flowstill.recipes.recipe import AfterStage, Job, Recipe, Stage, Weights
from flowstill.recipes.storage import most_bytes, readable
from flowstill.runs import RunWriter
from flowstill.transfer.knowledge import Setting

if TYPE_CHECKING:
    from flowstill.data import ImageData

SAVE_EVERY = 30.0  # seconds between two saved states
LOG_POINTS = 50  # rows of losses in a stage


class Session:
    """One process's part in a run. Only the process of rank 0 writes."""

    def __init__(
        self,
        fabric: Fabric,
        recipe: Recipe,
        data: ImageData,
        writer: RunWriter,
        plans: dict[str, JobPlan],
        precision: Precision,
        summary: dict[str, Any],
        watch: Watch,
        on_step: OnStep | None = None,
        objects: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.fabric, self.recipe, self.data, self.writer, self.plans = fabric, recipe, data, writer, plans
        self.precision, self.summary, self.watch, self.on_step = precision, summary, watch, on_step
        self.objects = objects or {}
        self.channels_last = precision.layout == "channels_last"
        self.stores = Stores(fabric, writer.path, data, precision)
        self.networks: dict[str, nn.Module] = {}
        self.interruption = Interruption()
        self.writes = fabric.global_rank == 0
        self.record = Record(fabric, data, watch, writer if self.writes else None, channels_last=self.channels_last)
        self._saved = time.perf_counter()

    def run(self) -> None:
        """All jobs to their end, from the saved state on if there is one."""
        state = self.writer.load_state()
        if state is not None:
            self.summary = json.loads(state["summary"])
        grown = state is None and bool(self.summary["jobs"])  # it was finished, and has got more jobs since
        if self.writes and not grown:
            self.writer.metrics.truncate(state["metrics"] if state else 0)
        begun = tuple(state["group"]) if state else ()
        with self.interruption:
            if grown:
                self._save(())
            for group in self._groups_left(begun):
                if self.writes and group != begun:
                    forget_stages(self.writer.path, group)
                self._run_group(group, state if group == begun else None)
                self._save(group)
            for name, ensemble in self.recipe.ensembles.items():
                if name in self.summary["ensembles"]:
                    continue
                members = [self.network(job) for job in ensemble.jobs]
                self.summary["ensembles"][name] = self.record.ensemble(members, ensemble.mean)
        self.summary["finished"] = True
        self.stores.remove()
        if self.writes:
            self.writer.metrics.flush()
            self.writer.write_summary(self.summary)
            self.writer.drop_state()

    def _groups_left(self, begun: tuple[str, ...]) -> list[tuple[str, ...]]:
        """What is still to be run: first the group that the saved state is of, then the others without what is done."""
        over = {*self.summary["jobs"], *begun}
        left = [tuple(name for name in group if name not in over) for group in self.recipe.groups()]
        return [group for group in (begun, *left) if group]

    def _run_group(self, group: tuple[str, ...], state: dict[str, Any] | None) -> None:
        """Jobs in lockstep: stage by stage, each with its own player and optimiser."""
        jobs = {name: self.recipe.jobs[name] for name in group}
        first = jobs[group[0]]
        networks = {name: self._start(name, job) for name, job in jobs.items()}
        count = 0 if first.weights else len(first.stages)
        seconds = state["seconds"] if state else 0.0
        begun = time.perf_counter()
        for number in range(state["stage"] if state else 0, count):
            here = state if state and state["stage"] == number else None
            self._run_stage(group, number, networks, here, seconds - begun)
            for name in group:
                self._keep_for_others(name, jobs[name].stages[number].name, networks[name])
        seconds += time.perf_counter() - begun
        for name, network in networks.items():
            self._finish(name, jobs[name], network, seconds)

    def _run_stage(
        self,
        group: tuple[str, ...],
        number: int,
        networks: dict[str, nn.Module],
        state: dict[str, Any] | None,
        clock: float,
    ) -> None:
        stages = {name: self.recipe.jobs[name].stages[number] for name in group}
        stage, lead = stages[group[0]], self.recipe.jobs[group[0]]
        seed = derive(self.recipe.seed, lead.seed, stage.name)
        teacher = self.network(lead.teacher) if lead.teacher and any(s.needs_teacher for s in stages.values()) else None
        runners, draws = {}, Draws(self.fabric)
        for name in group:
            torch.manual_seed(seed)  # for each, so that it draws what it would draw by itself
            if stages[name].fresh_head:
                fresh_head(networks[name])
            setting = Setting(teacher, networks[name], self.data.shape, len(self.data.classes), seed)
            runners[name] = StageRunner(
                self.fabric, networks[name], stages[name], self.plans[name].pairs, setting, self.recipe.data.accumulate
            )
            draws.add(name)
        start = state["loop"]["step"] if state else 0
        stored = self.stores.targets(Teacher(self.fabric, teacher, self.channels_last), runners.values())
        if stored.stores:
            most = most_bytes(file for name in group for file in self.plans[name].stored[stages[name].name])
            self.watch.say(
                f"{' + '.join(group)}, {stage.name}: the teacher's knowledge is stored, at most {readable(most)}"
            )
        loop = StageLoop(
            self.fabric,
            runners,
            stored,
            self._feed(stage, lead, start),
            draws,
            start=start,
            channels_last=self.channels_last,
        )
        if state:
            loop.load(state["loop"])
            restore_random_states(self.fabric, state["rng"])
            draws.load(state.get("draws", {}))
        self.watch.stage(" + ".join(group), stage.name, start, stage.steps)
        pace = Pace(self.recipe.data.batch)
        logged = marks(stage.steps, LOG_POINTS)
        measured = marks(stage.steps, evaluations(self.recipe, stage.steps, self.data.test_size))
        while loop.step < stage.steps:
            loop.advance()
            pace.step()
            self.watch.step()
            if loop.step in logged:
                self.record.losses(loop, pace.speed())
            if loop.step in measured and loop.step < stage.steps:
                self.record.curve(loop)
            if self.on_step:
                self.on_step(group[0], stage.name, loop.step)
            if self._should_save(loop.step in logged) and loop.step < stage.steps:
                self._save(group, number, loop, clock + time.perf_counter())
        self.record.losses(loop)
        for runner in runners.values():
            runner.close()

    def _feed(self, stage: Stage, job: Job, start: int) -> Feed:
        data = self.recipe.data
        return Feed(
            self.data,
            stage.rhythm,
            batch=data.batch,
            unlabelled=data.unlabelled,
            labels=job.labels or data.labels,
            start=start,
            steps=stage.steps - start,
            seed=derive(self.recipe.seed, job.seed, stage.name, "order"),
            device=self.fabric.device,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
        )

    def _start(self, name: str, job: Job) -> nn.Module:
        """The job's network as its first stage finds it."""
        torch.manual_seed(derive(self.recipe.seed, job.seed, "init"))
        network = self._built(name)
        if job.weights:
            load_weights(network, job.weights)
        elif isinstance(job.start, Weights):
            load_weights(network, job.start.weights)
        elif isinstance(job.start, AfterStage):
            load_weights(network, stage_file(self.writer.path, self.recipe, job.start.job, job.start.stage))
        return placed(network, self.fabric, self.precision)

    def network(self, name: str) -> nn.Module:
        """A finished job's network, frozen, in eval mode."""
        if name not in self.networks:
            with torch.random.fork_rng(devices=[]):  # the fresh weights, soon replaced, are drawn from it
                network = self._built(name)
            load_weights(network, self.writer.path / f"{name}.safetensors")
            self.networks[name] = placed(network, self.fabric, self.precision)
        return self.networks[name].requires_grad_(False).eval()

    def _built(self, name: str) -> nn.Module:
        """A job's network, fresh; of one that is given as an object, a copy."""
        if name in self.objects:
            return copy_of(self.objects[name])
        spec = self.recipe.jobs[name].network
        return build(spec, num_classes=len(self.data.classes), in_channels=self.data.shape[0])

    def _finish(self, name: str, job: Job, network: nn.Module, seconds: float) -> None:
        """Measure and keep a network that is done."""
        stages = () if job.weights else job.stages
        steps, plan = sum(stage.steps for stage in stages), self.plans[name]
        last, reached = (stages[-1].name, stages[-1].steps) if stages else ("", 0)
        scores = self.record.score(name, last, reached, network) if plan.measured else {}
        paper = self.recipe.paper.accuracy.get(name) if self.recipe.paper else None
        self.summary["jobs"][name] = {
            **scores,
            "network": job.network.name,
            "about": job.about,
            "labels": (job.labels or self.recipe.data.labels) if stages else None,
            "parameters": plan.counts.parameters,
            "macs": plan.counts.macs,
            "steps": steps,
            "seconds": round(seconds, 2),
            "teacher": job.teacher,
            **({"paper": paper} if paper is not None else {}),
        }
        self.networks[name] = network
        if self.writes:
            self.writer.save_network(name, network.state_dict())
        how_good = f"{scores['accuracy']:.2f} %" if scores else "other classes than the data's,"
        self.watch.say(f"{name}: {how_good} after {steps} steps, {seconds:.0f} s")
        self.fabric.barrier()

    def _keep_for_others(self, name: str, stage: str, network: nn.Module) -> None:
        """Other jobs may start from what this network is now; after its last stage it is kept anyway."""
        wanted = [AfterStage(name, stage) == job.start for job in self.recipe.jobs.values()]
        if self.writes and any(wanted) and stage != self.recipe.jobs[name].stages[-1].name:
            self.writer.save_network(stage_file(self.writer.path, self.recipe, name, stage).stem, network.state_dict())
        self.fabric.barrier()

    def _should_save(self, looked: bool) -> bool:
        """Every so many seconds, and at once when interrupted. All processes decide alike."""
        due = time.perf_counter() - self._saved > SAVE_EVERY
        if self.fabric.world_size == 1:
            return self.interruption.asked or due
        if not looked:
            return False
        mine = torch.tensor([float(self.interruption.asked), float(due)], device=self.fabric.device)
        summed = self.fabric.all_reduce(mine, reduce_op="sum")
        assert isinstance(summed, torch.Tensor)
        asked, due_somewhere = summed.tolist()
        self.interruption.asked = asked > 0
        return self.interruption.asked or due_somewhere > 0

    def _save(
        self, group: tuple[str, ...], stage: int = 0, loop: StageLoop | None = None, seconds: float = 0.0
    ) -> None:
        """Write the state. Without a loop: the group is finished."""
        rng, draws = random_states(self.fabric), loop.draws.state() if loop else {}
        if self.writes:
            self.writer.metrics.flush()
            state: dict[str, Any] = {
                "summary": json.dumps(self.summary),
                "metrics": self.writer.metrics.position(),
                "group": list(group) if loop else [],
                "stage": stage,
                "seconds": seconds,
                "rng": rng,
                "draws": draws,
            }
            self.writer.save_state({**state, "loop": loop.state()} if loop else state)
            self.writer.write_summary(self.summary)
        self._saved = time.perf_counter()
        if self.interruption.asked:
            raise KeyboardInterrupt
