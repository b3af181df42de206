"""Checks of the names in a recipe: jobs that build on others, ensembles, groups trained in lockstep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from flowstill.errors import did_you_mean
from flowstill.schema.problems import Loc, Problem, Problems

if TYPE_CHECKING:
    from flowstill.recipes.recipe import AfterStage, Job, Recipe


def check_references(recipe: Recipe, starts: Mapping[str, AfterStage]) -> None:
    """Check that the jobs and stages that a recipe refers to exist and fit together.

    Args:
        recipe: with its fields valid one by one.
        starts: for each job that starts from another job's stage, that stage.

    Raises:
        Problems: names of jobs or stages that do not exist, all of them.
        ValueError: jobs in one group of ``together`` need different batches or teachers.
    """
    problems = [*_wrong_jobs(recipe, starts), *_wrong_groups(recipe)]
    if problems:
        raise Problems("Recipe", problems)
    for group in recipe.together:
        _check_lockstep(recipe, group)


def _wrong_jobs(recipe: Recipe, starts: Mapping[str, AfterStage]) -> Iterator[Problem]:
    """Problems with the jobs and stages that each job builds on."""
    for name, job in recipe.jobs.items():
        others = [other for other in recipe.jobs if other != name]
        if job.teacher is not None and job.teacher not in others:
            yield Problem(("jobs", name, "teacher"), _unknown_job(job.teacher, others, of=name))
        if name in starts:
            yield from _wrong_start(recipe, name, starts[name], others)


def _wrong_start(recipe: Recipe, name: str, start: AfterStage, others: Sequence[str]) -> Iterator[Problem]:
    """Problems with the stage of another job that job ``name`` starts from."""
    loc = ("jobs", name, "start")
    if start.job not in others:
        yield Problem((*loc, "job"), _unknown_job(start.job, others, of=name))
        return
    other = recipe.jobs[start.job]
    stages = [stage.name for stage in other.stages]
    if other.weights:
        text = f"Job {start.job!r} has 'weights', so none of its stages is run. Start from that file instead."
        yield Problem((*loc, "job"), text)
    elif start.stage not in stages:
        text = f"Job {start.job!r} has no stage {start.stage!r}. {did_you_mean(start.stage, stages)}"
        yield Problem((*loc, "stage"), text.strip())


def _wrong_groups(recipe: Recipe) -> Iterator[Problem]:
    """Problems with the members of ensembles and of groups in ``together``."""
    groups: dict[Loc, tuple[str, ...]] = {("ensembles", name, "jobs"): e.jobs for name, e in recipe.ensembles.items()}
    groups |= {("together", number): group for number, group in enumerate(recipe.together)}
    for loc, members in groups.items():
        if not members:
            yield Problem(loc, "expected the names of jobs, got none")
        for number, member in enumerate(members):
            if member not in recipe.jobs:
                yield Problem((*loc, number), _unknown_job(member, recipe.jobs))
    together = [member for group in recipe.together for member in group]
    for member in dict.fromkeys(together):
        if together.count(member) > 1:
            yield Problem(("together",), f"job {member!r} is listed more than once")


def _check_lockstep(recipe: Recipe, group: tuple[str, ...]) -> None:
    """Check that jobs trained in lockstep need the same batches and the same teacher, since they share both.

    Raises:
        ValueError: two of them differ.
    """
    first = recipe.jobs[group[0]]
    for name in group[1:]:
        job = recipe.jobs[name]
        shared = {
            "teacher": lambda j: j.teacher,
            "labels": lambda j: j.labels,
            "seed": lambda j: j.seed,
            "stages": _rhythm,
        }
        for what, read in shared.items():
            a, b = read(first), read(job)
            if a != b:
                raise ValueError(f"jobs {group[0]!r} and {name!r} go together but differ in their {what}: {a} and {b}")


def _rhythm(job: Job) -> tuple[tuple[int, tuple[tuple[bool, bool], ...]], ...]:
    """The length of each stage, and which batches each step of its cycle needs."""
    return tuple((stage.steps, stage.rhythm) for stage in job.stages)


def _unknown_job(name: str, jobs: Iterable[str], of: str | None = None) -> str:
    """Say that ``name``, which job ``of`` builds on, is not among ``jobs``."""
    if name == of:
        return f"Job {name!r} cannot build on itself. {did_you_mean('', jobs)}".strip()
    return f"Unknown job {name!r}. {did_you_mean(name, jobs)}".strip()
