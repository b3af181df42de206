"""Whether a recipe can be run, found out on meta tensors: no data is read and nothing is computed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from flowstill.errors import FlowstillError, NetworkError, RecipeError
from flowstill.features.pairs import Pairs, pair_sections, pairs_by_hand
from flowstill.features.taps import Tapped
from flowstill.features.tracing import example_images, read_once, undisturbed
from flowstill.nets import Counts, build, count, is_object, load_weights
from flowstill.recipes.recipe import Job, Recipe, Stage, Weights
from flowstill.recipes.storage import StoredFile, stored_files
from flowstill.transfer.knowledge import Knowledge, Loss, Setting

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class JobPlan:
    """What a job comes to.

    pairs: the sections that its transfer uses, empty without a teacher. terms: for each stage, each term's name with the
    teacher's and the student's taps. stored: for each stage, what its stored knowledge takes. measured: whether the
    network tells the data's classes apart; a teacher of other classes may not.
    """

    name: str
    network: str
    counts: Counts
    pairs: Pairs = ()
    terms: dict[str, list[tuple[str, tuple[str, ...], tuple[str, ...]]]] = field(default_factory=dict)
    stored: dict[str, tuple[StoredFile, ...]] = field(default_factory=dict)
    measured: bool = True


def check(
    recipe: Recipe,
    shape: Shape,
    classes: int,
    objects: Mapping[str, nn.Module] | None = None,
    images: int | None = None,
) -> dict[str, JobPlan]:
    """Build every network, find and pair its sections, build every loss; (C, H, W) is the images' shape.

    objects: jobs' networks that are given, and left as they are, instead of being built by name.
    images: how many rows the training set has, None where that is not known.
    Raises: FlowstillError with the job's name in front.
    """
    with torch.random.fork_rng(devices=[]):
        kinds: dict[str, str] = {}  # jobs of one kind share a network here
        for name, job in recipe.jobs.items():
            if name not in (objects or {}):
                kinds.setdefault(repr(job.network), name)
        made = {kind: _made(name, recipe.jobs[name], shape, classes) for kind, name in kinds.items()}
        networks = {
            name: objects[name] if objects and name in objects else made[repr(job.network)]
            for name, job in recipe.jobs.items()
        }
    others = {
        name: other
        for name, job in recipe.jobs.items()
        if (
            other := _check_weights(name, job, networks[name])
            or _other_classes(name, job, networks[name], shape, classes)
        )
    }
    pair, size = functools.cache(pair_sections), functools.cache(count)
    return {name: _plan(name, recipe, networks, others, shape, classes, images, pair, size) for name in recipe.jobs}


def _made(name: str, job: Job, shape: Shape, classes: int) -> nn.Module:
    """``on_meta``, with the job's name where its network cannot be."""
    try:
        return on_meta(job, shape, classes)
    except NetworkError as error:
        raise NetworkError(f"jobs.{name}.network: {error}") from None


def on_meta(job: Job, shape: Shape, classes: int) -> nn.Module:
    """The job's network without memory behind its weights, or with, for networks that cannot be built otherwise."""
    try:
        with torch.device("meta"):
            return build(job.network, num_classes=classes, in_channels=shape[0])
    except Exception:
        return build(job.network, num_classes=classes, in_channels=shape[0])


def _check_weights(name: str, job: Job, network: nn.Module) -> str:
    """Load the file that the job starts from once, so that a bad one is found before anything runs.

    Returns: what is to be said if the job's network is finished but has learned other classes, else nothing.
    """
    path = job.weights or (job.start.weights if isinstance(job.start, Weights) else None)
    if not path:
        return ""
    try:
        notices = load_weights(network, path)
    except FlowstillError as error:
        raise type(error)(f"job {name!r}: {error}") from None
    return " ".join(notices) if job.weights else ""


def _other_classes(name: str, job: Job, network: nn.Module, shape: Shape, classes: int) -> str:
    """What is to be said if the network does not tell the data's classes apart, else nothing.

    Raises: NetworkError if the job is to learn the task and cannot.
    """
    task = any(update.task for stage in job.stages for update in stage.updates)
    if not task and not is_object(job.network.name):
        return ""  # built for these classes
    images = example_images(network, (1, *shape))
    try:
        with undisturbed(network, images.device), torch.no_grad():
            logits = read_once(Tapped(network), images).logits
    except NetworkError as error:
        raise NetworkError(f"job {name!r}: {error}") from None
    if logits is not None and logits.ndim == 2 and logits.shape[1] == classes:
        return ""
    gives = "no logits" if logits is None else f"an output of shape {('images', *logits.shape[1:])}"
    wrong = f"{job.network.name} gives {gives}, but the data has {classes} classes"
    if task:
        raise NetworkError(f"job {name!r}: {wrong}, so it cannot learn them. Give it a head of {classes} outputs.")
    return f"{wrong}."


def _plan(
    name: str,
    recipe: Recipe,
    networks: dict[str, nn.Module],
    others: dict[str, str],
    shape: Shape,
    classes: int,
    images: int | None,
    pair: Callable[..., Pairs],
    size: Callable[..., Counts],
) -> JobPlan:
    job = recipe.jobs[name]
    student, teacher = networks[name], networks.get(job.teacher or "")
    try:
        pairs: Pairs = ()
        if teacher is not None and any(stage.reads_sections for stage in job.stages):
            example = (1, *shape)
            pairs = (
                pairs_by_hand(teacher, student, example, [(f.teacher, f.student) for f in job.flows])
                if job.flows
                else pair(teacher, student, example)
            )
        setting = Setting(teacher, student, shape, classes)
        built = {stage.name: _build(stage, pairs, replace(setting, shared={})) for stage in job.stages}
        if job.teacher in others:
            _check_predictions(built, job.teacher, others[job.teacher])
        terms = {stage: [_taps(*term) for term in its] for stage, its in built.items()}
        stored = {
            stage.name: stored_files(job, stage, built[stage.name], recipe.data, teacher, shape, images)
            for stage in job.stages
        }
        return JobPlan(name, job.network.name, size(student, shape), pairs, terms, stored, name not in others)
    except (NetworkError, RecipeError) as error:
        raise type(error)(f"job {name!r}: {error}") from None


def _check_predictions(built: dict[str, list[tuple[Knowledge, Loss]]], teacher: str, why: str) -> None:
    """Raises: RecipeError if a term reads the predictions of a teacher that has learned other classes."""
    for stage, terms in built.items():
        for knowledge, loss in terms:
            if loss.same_classes:
                raise RecipeError(
                    f"stage {stage!r}: {knowledge.name} reads the predictions of {teacher!r}, but {why} "
                    "Fine-tune the teacher on these classes first, or use what reads no predictions, "
                    "such as fsp."
                )


def _build(stage: Stage, pairs: Pairs, setting: Setting) -> list[tuple[Knowledge, Loss]]:
    """Each term's knowledge and loss. Raises: RecipeError if a player would have nothing to move."""
    losses = [
        (term.knowledge, term.knowledge.build(pairs, setting)) for update in stage.updates for term in update.terms
    ]
    parts: dict[str, list[nn.Module]] = {"student": [setting.student]}
    for _, loss in losses:
        for role, module in loss.parts().items():
            parts.setdefault(role, []).append(module)
    for name, player in stage.players.items():
        moves = [module for role in player.modules for module in parts.get(role, [])]
        where = f"stage {stage.name!r}: player {name!r} moves {', '.join(player.modules)}, but"
        if not moves:
            raise RecipeError(f"{where} no term of the stage brings any; there is {', '.join(sorted(parts))}.")
        if not any(parameter.requires_grad for module in moves for parameter in module.parameters()):
            raise RecipeError(f"{where} all their parameters are frozen; let some train, requires_grad_(True).")
    return losses


def _taps(knowledge: Knowledge, loss: Loss) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """A term's name with the teacher's and the student's taps."""
    return knowledge.name, tuple(map(str, loss.teacher_taps)), tuple(map(str, loss.student_taps))
