"""The domain model: what images, which networks, in what order. Frozen dataclasses; YAML loads into them.

A recipe names jobs; a job is a row of stages (``flowstill.transfer.stages``): who moves on which loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from flowstill.data.spec import Augment, Data
from flowstill.errors import did_you_mean
from flowstill.nets.spec import Net
from flowstill.schema import specification
from flowstill.schema.code import located
from flowstill.schema.problems import Loc, Problem, Problems
from flowstill.transfer.rules import AdaptiveClip, Rule, Sum
from flowstill.transfer.schedules import Constant, Cosine, Linear, Milestones, Schedule
from flowstill.transfer.stages import Name, Optimizer, Player, Stage, Term, Update

__all__ = [
    "AdaptiveClip",
    "AfterStage",
    "Augment",
    "Constant",
    "Cosine",
    "Data",
    "Ensemble",
    "Flows",
    "Job",
    "Linear",
    "Milestones",
    "Net",
    "Optimizer",
    "Paper",
    "Player",
    "Recipe",
    "Rule",
    "Schedule",
    "Stage",
    "Sum",
    "Term",
    "Update",
    "Weights",
]


def _as_names(value: Any) -> Any:
    """One name is short for a list of one; files become absolute paths."""
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)):
        return names
    return tuple(located(name) if isinstance(name, str) else name for name in names)


Uses = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(_as_names),
    Field(description="names of installed modules and paths of Python files"),
]


@specification
class AfterStage:
    """Start from what another job's network was after one of its stages (a shared stage 1)."""

    job: str
    stage: str


@specification
class Weights:
    """Start from the weights in a file (safetensors, or a plain ``torch.save`` of tensors)."""

    weights: str


@specification
class Flows:
    """Taps named by hand, where the search should not decide: ``front`` and ``back`` in each network."""

    teacher: tuple[str, str]
    student: tuple[str, str]


@specification
class Job:
    """One network's life; a teacher is a job too.

    weights: a file that makes the network finished: its stages are not run. start: where training begins.
    labels: so many labelled images for this job's task instead of the data's ``labels``. flows: taps named by hand
    instead of the pairs that the search finds.
    """

    network: Annotated[Net, BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v)]
    stages: tuple[Stage, ...] = ()
    teacher: str | None = None
    start: Weights | AfterStage | None = None
    weights: str | None = None
    labels: Annotated[int, Field(ge=1)] | None = None
    flows: tuple[Flows, ...] | None = None
    seed: int = 0
    about: str = ""

    if TYPE_CHECKING:

        def __init__(
            self,
            network: Net | str | Mapping[str, Any],
            stages: Sequence[Stage | Mapping[str, Any]] = (),
            teacher: str | None = None,
            start: Weights | AfterStage | Mapping[str, str] | None = None,
            weights: str | None = None,
            labels: int | None = None,
            flows: Sequence[Flows | Mapping[str, Any]] | None = None,
            seed: int = 0,
            about: str = "",
        ) -> None: ...

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have one name: {', '.join(names)}")
        if self.teacher is None:
            for stage in self.stages:
                if stage.needs_teacher:
                    raise ValueError(
                        f"stage {stage.name!r} transfers from a teacher, but the job names none; add 'teacher: JOB'"
                    )


@specification
class Ensemble:
    """Several jobs' networks as one: the mean of their softmax outputs, or of their logits."""

    jobs: tuple[str, ...]
    mean: Literal["softmax", "logits"] = "softmax"


@specification
class Paper:
    """Numbers that a paper prints, shown beside ours."""

    title: str
    accuracy: dict[str, float | None] = Field(default_factory=dict)  # job -> percent


@specification
class Recipe:
    """Data, jobs, ensembles: all that a run needs to know.

    figure: what is drawn of it beside its table: ``curves`` of loss and accuracy, ``kernels`` of the first layer; or
    without any job, the ``penalty`` of sparse recoding, or ``samples`` of distorted images beside plain ones.
    """

    name: str
    data: Data
    jobs: dict[Name, Job] = Field(default_factory=dict)
    ensembles: dict[Name, Ensemble] = Field(default_factory=dict)
    together: tuple[tuple[str, ...], ...] = ()
    seed: int = 0
    about: str = ""
    paper: Paper | None = None
    figure: Literal["curves", "kernels", "penalty", "samples"] | None = None
    uses: Uses = ()

    if TYPE_CHECKING:

        def __init__(
            self,
            name: str,
            data: Data,
            jobs: Mapping[str, Job] = ...,
            ensembles: Mapping[str, Ensemble] = ...,
            together: Sequence[Sequence[str]] = (),
            seed: int = 0,
            about: str = "",
            paper: Paper | None = None,
            figure: Literal["curves", "kernels", "penalty", "samples"] | None = None,
            uses: Sequence[str] | str = (),
        ) -> None: ...

    def __post_init__(self) -> None:
        if not self.jobs and self.figure not in ("penalty", "samples"):
            raise ValueError("a recipe needs at least one job")
        problems = [*self._wrong_jobs(), *self._wrong_groups()]
        if problems:
            raise Problems("Recipe", problems)
        for group in self.together:
            self._check_lockstep(group)
        self.groups()

    def _wrong_jobs(self) -> Iterator[Problem]:
        """Jobs and stages that a job builds on and that are not there."""
        for name, job in self.jobs.items():
            others = [other for other in self.jobs if other != name]
            if job.teacher is not None and job.teacher not in others:
                text = f"{job.teacher!r} is no other job. {did_you_mean(job.teacher, others)}"
                yield Problem(("jobs", name, "teacher"), text.strip())
            if isinstance(job.start, AfterStage) and job.start.job not in others:
                text = f"{job.start.job!r} is no other job. {did_you_mean(job.start.job, others)}"
                yield Problem(("jobs", name, "start", "job"), text.strip())
            elif isinstance(job.start, AfterStage):
                start, stages = job.start, [stage.name for stage in self.jobs[job.start.job].stages]
                if self.jobs[start.job].weights:
                    text = f"{start.job!r} is given its weights and runs no stage; start from that file instead"
                    yield Problem(("jobs", name, "start", "job"), text)
                elif start.stage not in stages:
                    text = f"{start.job!r} has no stage {start.stage!r}. {did_you_mean(start.stage, stages)}"
                    yield Problem(("jobs", name, "start", "stage"), text.strip())

    def _wrong_groups(self) -> Iterator[Problem]:
        """Members of ensembles, and of groups that go together, that are no jobs or that are in two groups."""
        groups: dict[Loc, tuple[str, ...]] = {("ensembles", name, "jobs"): e.jobs for name, e in self.ensembles.items()}
        groups |= {("together", number): group for number, group in enumerate(self.together)}
        for loc, members in groups.items():
            if not members:
                yield Problem(loc, "expected the names of jobs, got none")
            for number, member in enumerate(members):
                if member not in self.jobs:
                    yield Problem((*loc, number), f"{member!r} is no job. {did_you_mean(member, self.jobs)}".strip())
        together = [member for group in self.together for member in group]
        for member in dict.fromkeys(together):
            if together.count(member) > 1:
                yield Problem(("together",), f"job {member!r} is in it more than once")

    def _check_lockstep(self, group: tuple[str, ...]) -> None:
        """Jobs that go together share batches, so they must want the same batches and the same teacher."""
        first = self.jobs[group[0]]
        for name in group[1:]:
            job = self.jobs[name]
            wants = {
                "teacher": lambda j: j.teacher,
                "labels": lambda j: j.labels,
                "seed": lambda j: j.seed,
                "row of stages": _rhythm,
            }
            for what, want in wants.items():
                a, b = want(first), want(job)
                if a != b:
                    raise ValueError(
                        f"jobs {group[0]!r} and {name!r} go together but differ in their {what}: {a} and {b}"
                    )

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The jobs in an order in which each comes after those that it builds on; jobs in one group go in lockstep.

        Raises: ValueError on a circle.
        """
        # A job that is given its weights has nothing to run, so it goes by itself.
        lockstep = [tuple(name for name in group if not self.jobs[name].weights) for group in self.together]
        group_of = {name: group for group in lockstep for name in group}
        waiting = list(dict.fromkeys(group_of.get(name, (name,)) for name in self.jobs))
        done: list[tuple[str, ...]] = []
        while waiting:
            ready = [
                g
                for g in waiting
                if all(other in (n for d in done for n in d) for name in g for other in self.builds_on(name))
            ]
            if not ready:
                raise ValueError(f"jobs wait for each other in a circle: {', '.join(n for g in waiting for n in g)}")
            done.append(ready[0])
            waiting.remove(ready[0])
        return tuple(done)

    def builds_on(self, name: str) -> tuple[str, ...]:
        """The jobs that must be finished before job ``name`` starts."""
        job = self.jobs[name]
        start = (job.start.job,) if isinstance(job.start, AfterStage) else ()
        return (*((job.teacher,) if job.teacher else ()), *start)


def _rhythm(job: Job) -> tuple[tuple[int, tuple[tuple[bool, bool], ...]], ...]:
    """How long the stages are, and which batches each step of their cycles needs."""
    return tuple((stage.steps, stage.rhythm) for stage in job.stages)
