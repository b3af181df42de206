"""Whether a recipe can be run, found out on meta tensors: no data is read and nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from flowstill.errors import FlowstillError, NetworkError, RecipeError
from flowstill.knowledge.base import Knowledge, Loss, Setting
from flowstill.nets import Counts, build, count, load_weights
from flowstill.recipes.schema import Job, Recipe, Stage, Weights
from flowstill.recipes.storage import StoredFile, stored_files
from flowstill.sections import Pairs, pair_sections, pairs_by_hand
from flowstill.taps import Tapped
from flowstill.tracing import example_images, read_once, undisturbed

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class JobPlan:
    """What a job comes to.

    pairs: the sections that its transfer uses, empty without a teacher. terms: for each stage, each term's name with the
    teacher's and the student's taps. stored: for each stage, what its stored knowledge takes.
    """

    name: str
    network: str
    counts: Counts
    pairs: Pairs = ()
    terms: dict[str, list[tuple[str, tuple[str, ...], tuple[str, ...]]]] = field(default_factory=dict)
    stored: dict[str, tuple[StoredFile, ...]] = field(default_factory=dict)


def check(
    recipe: Recipe, shape: Shape, classes: int, objects: Mapping[str, nn.Module] | None = None,
    images: int | None = None,
) -> dict[str, JobPlan]:  # fmt: skip
    """Build every network, find and pair its sections, build every loss; (C, H, W) is the images' shape.

    objects: jobs' networks that are given, and left as they are, instead of being built by name.
    images: how many rows the training set has, None where that is not known.
    Raises: FlowstillError with the job's name in front.
    """
    with torch.random.fork_rng(devices=[]):
        networks = {
            name: (objects or {}).get(name) or on_meta(job, shape, classes) for name, job in recipe.jobs.items()
        }
    for name, job in recipe.jobs.items():
        _check_weights(name, job, networks[name])
    return {name: _plan(name, recipe, networks, shape, classes, images) for name in recipe.jobs}


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


def _plan(
    name: str, recipe: Recipe, networks: dict[str, nn.Module], shape: Shape, classes: int, images: int | None
) -> JobPlan:
    job = recipe.jobs[name]
    student, teacher = networks[name], networks.get(job.teacher or "")
    try:
        pairs: Pairs = ()
        if teacher is not None and any(stage.reads_sections for stage in job.stages):
            example = (1, *shape)
            pairs = pairs_by_hand(teacher, student, example, [(f.teacher, f.student) for f in job.flows]) \
                if job.flows else pair_sections(teacher, student, example)  # fmt: skip
        setting = Setting(teacher, student, shape, classes)
        _check_classes(student, job, shape, classes)
        built = {stage.name: _build(stage, pairs, replace(setting, shared={})) for stage in job.stages}
        terms = {stage: [_taps(*term) for term in its] for stage, its in built.items()}
        stored = {stage.name: stored_files(job, stage, built[stage.name], recipe.data, teacher, shape, images)
                  for stage in job.stages}  # fmt: skip
        return JobPlan(name, job.network.name, count(student, shape), pairs, terms, stored)
    except (NetworkError, RecipeError) as error:
        raise type(error)(f"job {name!r}: {error}") from None


def _check_classes(network: nn.Module, job: Job, shape: Shape, classes: int) -> None:
    """Raises: NetworkError if the task cannot be told from the network's output."""
    if not any(update.task for stage in job.stages for update in stage.updates):
        return
    images = example_images(network, (1, *shape))
    with undisturbed(network, images.device), torch.no_grad():
        logits = read_once(Tapped(network), images).logits
    if logits is None or logits.ndim != 2 or logits.shape[1] != classes:
        found = "no logits" if logits is None else f"an output of shape {('images', *logits.shape[1:])}"
        raise NetworkError(f"{job.network.name} gives {found}, but the data has {classes} classes: the task needs "
                           f"(images, {classes}). Give the network a head of {classes} outputs.")  # fmt: skip


def _build(stage: Stage, pairs: Pairs, setting: Setting) -> list[tuple[Knowledge, Loss]]:
    """Each term's knowledge and loss. Raises: RecipeError if a player would have nothing to move."""
    losses = [
        (term.knowledge, term.knowledge.build(pairs, setting)) for update in stage.updates for term in update.terms
    ]
    there = {"student", *(role for _, loss in losses for role in loss.parts())}
    for name, player in stage.players.items():
        if not there.intersection(player.modules):
            raise RecipeError(
                f"stage {stage.name!r}: player {name!r} moves {', '.join(player.modules)}, but no term of the stage brings "
                f"any; there is {', '.join(sorted(there))}."
            )
    return losses


def _taps(knowledge: Knowledge, loss: Loss) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """A term's name with the teacher's and the student's taps."""
    return knowledge.name, tuple(map(str, loss.teacher_taps)), tuple(map(str, loss.student_taps))
