"""Whether a recipe can be run, found out on meta tensors: no data is read and nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from flowstill.errors import FlowstillError, NetworkError, RecipeError
from flowstill.knowledge.base import Setting
from flowstill.nets import Counts, build, count, load_weights
from flowstill.recipes.schema import Job, Recipe, Stage, Weights
from flowstill.sections import Pairs, pair_sections, pairs_by_hand
from flowstill.transfer.stages import Stored

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class JobPlan:
    """What a job comes to.

    pairs: the sections that its transfer uses, empty without a teacher. terms: for each stage, each term's name with the
    teacher's and the student's taps.
    """

    name: str
    network: str
    counts: Counts
    pairs: Pairs = ()
    terms: dict[str, list[tuple[str, tuple[str, ...], tuple[str, ...]]]] = field(default_factory=dict)


def check(recipe: Recipe, shape: Shape, classes: int) -> dict[str, JobPlan]:
    """Build every network, find and pair its sections, build every loss; (C, H, W) is the images' shape.

    Raises: FlowstillError with the job's name in front.
    """
    with torch.random.fork_rng(devices=[]):
        networks = {name: on_meta(job, shape, classes) for name, job in recipe.jobs.items()}
    for name, job in recipe.jobs.items():
        _check_weights(name, job, networks[name])
    return {name: _plan(name, recipe, networks, shape, classes) for name in recipe.jobs}


def on_meta(job: Job, shape: Shape, classes: int) -> nn.Module:
    """The job's network without memory behind its weights, or with, for networks that cannot be built otherwise."""
    try:
        with torch.device("meta"):
            return build(job.network, num_classes=classes, in_channels=shape[0])
    except Exception:
        return build(job.network, num_classes=classes, in_channels=shape[0])


def _check_weights(name: str, job: Job, network: nn.Module) -> None:
    """Load the file that the job starts from once, so that a bad one is found before anything runs."""
    path = job.weights or (job.start.weights if isinstance(job.start, Weights) else None)
    if path:
        try:
            load_weights(network, path)
        except FlowstillError as error:
            raise type(error)(f"job {name!r}: {error}") from None


def _plan(name: str, recipe: Recipe, networks: dict[str, nn.Module], shape: Shape, classes: int) -> JobPlan:
    job = recipe.jobs[name]
    student, teacher = networks[name], networks.get(job.teacher or "")
    try:
        pairs: Pairs = ()
        if teacher is not None and any(stage.needs_teacher for stage in job.stages):
            example = (1, *shape)
            pairs = pairs_by_hand(teacher, student, example, [(f.teacher, f.student) for f in job.flows]) \
                if job.flows else pair_sections(teacher, student, example)  # fmt: skip
        setting = Setting(teacher, student, shape, classes)
        terms = {stage.name: _terms(stage, pairs, replace(setting, shared={})) for stage in job.stages}
        return JobPlan(name, job.network.name, count(student, shape), pairs, terms)
    except (NetworkError, RecipeError) as error:
        raise type(error)(f"job {name!r}: {error}") from None


def _terms(stage: Stage, pairs: Pairs, setting: Setting) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Each term's name and taps. Raises: RecipeError if a player would have nothing to move."""
    losses = [
        (term.knowledge.name, term.knowledge.build(pairs, setting)) for update in stage.updates for term in update.terms
    ]
    if isinstance(stage.knowledge, Stored):
        raise RecipeError(f"stage {stage.name!r}: stored knowledge cannot be run yet; use 'knowledge: live'.")
    there = {"student", *(role for _, loss in losses for role in loss.parts())}
    for name, player in stage.players.items():
        if not there.intersection(player.modules):
            raise RecipeError(
                f"stage {stage.name!r}: player {name!r} moves {', '.join(player.modules)}, but no term of the stage brings "
                f"any; there is {', '.join(sorted(there))}."
            )
    return [(name, tuple(map(str, loss.teacher_taps)), tuple(map(str, loss.student_taps))) for name, loss in losses]
