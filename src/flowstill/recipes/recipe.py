"""The schema of recipes: which images, which networks, in what order. Frozen dataclasses; YAML loads into them.

A recipe names jobs; a job is a row of stages (``flowstill.transfer.stages``): who moves on which loss.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from flowstill.data.given import refuse_images
from flowstill.data.spec import Augment, Data
from flowstill.nets.spec import Net
from flowstill.recipes.references import check_references
from flowstill.schema import specification
from flowstill.schema.code import located
from flowstill.schema.text import Name, Text, path_as_text
from flowstill.transfer.rules import AdaptiveClip, Rule, Sum
from flowstill.transfer.schedules import Constant, Cosine, Linear, Milestones, Schedule
from flowstill.transfer.stages import Optimizer, Player, Stage, Term, Update

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
    """Read one name as a list of one, and make the paths of files absolute."""
    names = (value,) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(names, (list, tuple)):
        return names
    texts = map(path_as_text, names)
    return tuple(located(text) if isinstance(text, str) else text for text in texts)


Uses = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(_as_names),
    Field(description="names of installed modules and paths of Python files"),
]


@specification
class AfterStage:
    """Start from another job's network after one of its stages, for example to share a first stage.

    Attributes:
        job: name of the other job.
        stage: name of the other job's stage.
    """

    job: str
    stage: str


@specification
class Weights:
    """Start from the weights in a file.

    Attributes:
        weights: path of the file, or ``FILE#KEY``; see ``flowstill.nets.read_weights``.
    """

    weights: Text

    if TYPE_CHECKING:

        def __init__(self, weights: str | os.PathLike[str]) -> None: ...


@specification
class Flows:
    """One pair of flows with its taps named by hand, where the search should not decide.

    Attributes:
        teacher: the front and the back tap in the teacher.
        student: the front and the back tap in the student.
    """

    teacher: tuple[str, str]
    student: tuple[str, str]


@specification
class Job:
    """One network: how it starts and how it is trained. A teacher is a job too.

    Attributes:
        network: the network; its name is short for ``{name: NAME}``.
        stages: how it is trained, in order.
        teacher: name of the job whose network teaches this one.
        start: weights that training starts from; random if None. ``trained`` says that the network is built with
            trained weights, such as by a function that loads them.
        weights: path of a file with the finished network's weights, or ``FILE#KEY``; no stage is run then.
        labels: number of labelled images for the task; the data's ``labels`` if None.
        flows: pairs of flows named by hand; the search finds them if None.
        seed: combined with the recipe's seed, so that equal jobs can differ in their draws.
        about: what the job is for, in a few words.
    """

    network: Annotated[Net, BeforeValidator(lambda v: {"name": v} if isinstance(v, (str, os.PathLike)) else v)]
    stages: tuple[Stage, ...] = ()
    teacher: str | None = None
    start: Weights | AfterStage | Literal["trained"] | None = None
    weights: Text | None = None
    labels: Annotated[int, Field(ge=1)] | None = None
    flows: tuple[Flows, ...] | None = None
    seed: int = 0
    about: str = ""

    @property
    def trains(self) -> bool:
        """Whether any stage is run."""
        return bool(self.stages) and not self.weights

    if TYPE_CHECKING:

        def __init__(
            self,
            network: Net | str | os.PathLike[str] | Mapping[str, Any],
            stages: Sequence[Stage | Mapping[str, Any]] = (),
            teacher: str | None = None,
            start: Weights | AfterStage | Mapping[str, str] | Literal["trained"] | None = None,
            weights: str | os.PathLike[str] | None = None,
            labels: int | None = None,
            flows: Sequence[Flows | Mapping[str, Any]] | None = None,
            seed: int = 0,
            about: str = "",
        ) -> None: ...

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stage names must differ, got {', '.join(names)}")
        if self.teacher is None:
            for stage in self.stages:
                if stage.needs_teacher:
                    raise ValueError(
                        f"stage {stage.name!r} transfers from a teacher, but the job names none; add 'teacher: JOB'"
                    )


@specification
class Ensemble:
    """Several jobs' networks evaluated as one, by the mean of their outputs.

    Attributes:
        jobs: names of the jobs.
        mean: what is averaged: the ``softmax`` outputs or the ``logits``.
    """

    jobs: tuple[str, ...]
    mean: Literal["softmax", "logits"] = "softmax"


@specification
class Paper:
    """Numbers printed in a paper, shown beside the measured ones.

    Attributes:
        title: what the numbers are quoted from.
        accuracy: top-1 accuracy in percent for each job; None if the paper prints none.
    """

    title: str
    accuracy: dict[str, float | None] = Field(default_factory=dict)


@specification
class Recipe:
    """Data, jobs and ensembles: all that a run needs to know.

    Attributes:
        name: what the recipe is called in run folders and reports.
        data: the images, and how they are read and augmented.
        jobs: the networks by name.
        ensembles: jobs evaluated together, by name.
        together: groups of jobs trained in lockstep, which share batches and the teacher's readings.
        seed: seed of every random draw.
        about: what the recipe is for, in a sentence.
        paper: printed numbers to compare with.
        figure: figure to draw: ``curves`` of loss and accuracy, ``kernels`` of the first layer or, for a recipe without
            jobs, the ``penalty`` of sparse recoding or ``samples`` of distorted images beside the originals.
        uses: modules and Python files to import first; they register their own networks, knowledge or data.
        on_nonfinite: what to do when a job's losses, gradients or weights are not finite. ``stop`` ends it within 50
            updates. ``skip`` leaves out each update with such a loss or gradient, counts it as ``train/skipped`` and ends
            the job after 50 such steps in a row; it waits for the device at every update.
    """

    name: str
    data: Annotated[Data, BeforeValidator(refuse_images)]
    jobs: dict[Name, Job] = Field(default_factory=dict)
    ensembles: dict[Name, Ensemble] = Field(default_factory=dict)
    together: tuple[tuple[str, ...], ...] = ()
    seed: int = 0
    about: str = ""
    paper: Paper | None = None
    figure: Literal["curves", "kernels", "penalty", "samples"] | None = None
    uses: Uses = ()
    on_nonfinite: Literal["stop", "skip"] = "stop"

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
            on_nonfinite: Literal["stop", "skip"] = "stop",
        ) -> None: ...

    def __post_init__(self) -> None:
        if not self.jobs and self.figure not in ("penalty", "samples"):
            raise ValueError("a recipe needs at least one job")
        starts = {name: job.start for name, job in self.jobs.items() if isinstance(job.start, AfterStage)}
        check_references(self, starts)
        self.groups()

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The jobs, ordered so that each comes after the jobs that it builds on.

        Returns:
            Groups of job names; the jobs of a group are trained in lockstep.

        Raises:
            ValueError: jobs wait for each other in a circle.
        """
        # A job with given weights has nothing to run, so it forms a group of its own.
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
