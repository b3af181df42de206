"""Check on meta tensors whether a recipe can be run: no data is read and nothing is computed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from flowstill.errors import FlowstillError, NetworkError, RecipeError
from flowstill.features.outputs import settle_logits
from flowstill.features.pairs import Pairs, pairs_by_hand
from flowstill.features.taps import Tapped
from flowstill.features.tracing import example_images, read_once, undisturbed
from flowstill.nets import Counts, build, count, fit_weights, is_object
from flowstill.recipes.fits import check_fit
from flowstill.recipes.notices import pair_with_notices
from flowstill.recipes.recipe import Job, Recipe, Stage, Weights
from flowstill.recipes.storage import StoredFile, stored_files
from flowstill.transfer.knowledge import Knowledge, Loss, Setting

Shape = tuple[int, int, int]
_log = logging.getLogger("flowstill")


@dataclass(frozen=True)
class JobPlan:
    """What a job will train and read.

    Attributes:
        name: the job's name.
        network: name of its network.
        counts: the network's size and operations.
        pairs: the pairs of sections that the transfer uses; empty without a teacher.
        terms: for each stage, each term's name with its taps in the teacher and in the student.
        stored: for each stage, the files of its stored knowledge.
        measured: whether the network classifies the data's classes; a teacher trained on other classes may not.
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
    shapes: Mapping[str, Shape] | None = None,
) -> dict[str, JobPlan]:
    """Build every network, find and pair its sections, build every loss.

    Args:
        recipe: what to check.
        shape: (C, H, W) of the images.
        classes: number of classes in the data.
        objects: networks of jobs that are given as objects, not built by name; they are not changed.
        images: number of training images; None if unknown.
        shapes: (C, H, W) of what a job's network sees, by the job's name, where it is not ``shape``.

    Returns:
        The plan of each job by its name.

    Raises:
        FlowstillError: a job cannot be run; the message begins with the job's name.
    """
    check_fit(recipe, shape, classes, images)
    with torch.random.fork_rng(devices=[]):
        kinds: dict[str, str] = {}  # equal networks are built once and shared
        for name, job in recipe.jobs.items():
            if name not in (objects or {}):
                kinds.setdefault(repr(job.network), name)
        sees = {name: (shapes or {}).get(name, shape) for name in recipe.jobs}
        built = {kind: _built(name, recipe.jobs[name], sees[name], classes) for kind, name in kinds.items()}
        networks = {
            name: objects[name] if objects and name in objects else built[repr(job.network)]
            for name, job in recipe.jobs.items()
        }
    told: set[str] = set()
    mismatches = {
        name: mismatch
        for name, job in recipe.jobs.items()
        if (
            mismatch := _check_weights(name, job, networks[name], told)
            or _class_mismatch(name, job, networks[name], sees[name], classes)
        )
    }
    pair, size = functools.cache(pair_with_notices), functools.cache(count)
    return {name: _plan(name, recipe, networks, mismatches, sees, classes, images, pair, size) for name in recipe.jobs}


def _built(name: str, job: Job, shape: Shape, classes: int) -> nn.Module:
    """``on_meta``, with the job's name in the error; its forward returns the logits alone."""
    try:
        network = on_meta(job, shape, classes)
    except NetworkError as error:
        raise NetworkError(f"jobs.{name}.network: {error}") from None
    try:
        settle_logits(network, shape, classes, trains=False)
    except NetworkError as error:
        raise NetworkError(f"job {name!r}: {error}") from None
    return network


def on_meta(job: Job, shape: Shape, classes: int) -> nn.Module:
    """The job's network on the meta device, or on the CPU if it cannot be built on meta.

    Args:
        job: the job.
        shape: (C, H, W) of the images.
        classes: number of classes.

    Raises:
        NetworkError: the network cannot be built.
    """
    try:
        with torch.device("meta"):
            return build(job.network, num_classes=classes, in_channels=shape[0])
    except Exception:
        return build(job.network, num_classes=classes, in_channels=shape[0])


def _check_weights(name: str, job: Job, network: nn.Module, told: set[str]) -> str:
    """Load the file that the job starts from once, to find a bad one before anything runs; log its notices.

    Args:
        name: the job's.
        job: the job.
        network: its network.
        told: the notices of jobs before, which are not logged again.

    Returns:
        A sentence if the file holds a finished network with classes other than the data's, else empty.

    Raises:
        FlowstillError: the file cannot be loaded into the network.
    """
    path = job.weights or (job.start.weights if isinstance(job.start, Weights) else None)
    if not path:
        return ""
    try:
        fitted = fit_weights(network, path)
    except FlowstillError as error:
        raise type(error)(f"job {name!r}: {error}") from None
    for notice in fitted.notices:
        if notice not in told:
            _log.warning(notice)
    told.update(fitted.notices)
    heads = fitted.heads
    if not job.weights or not heads:
        return ""
    head, (stored, wanted) = next(iter(heads.items()))
    return f"the head {head!r} in {path} has {stored} classes, the network {wanted}."


def _class_mismatch(name: str, job: Job, network: nn.Module, shape: Shape, classes: int) -> str:
    """Compare the network's output with the data's classes.

    Returns:
        A sentence if they differ, else empty.

    Raises:
        NetworkError: they differ, and the job trains on the task.
    """
    task = any(update.task for stage in job.stages for update in stage.updates)
    if not task and not is_object(job.network.name):
        return ""  # a network built by name has these classes
    images = example_images(network, (1, *shape))
    try:
        with undisturbed(network, images.device), torch.no_grad():
            logits = read_once(Tapped(network), images).logits
    except NetworkError as error:
        raise NetworkError(f"job {name!r}: {error}") from None
    if logits is not None and logits.ndim == 2 and logits.shape[1] == classes:
        return ""
    output = "no logits" if logits is None else f"an output of shape {('images', *logits.shape[1:])}"
    mismatch = f"{job.network.name.removeprefix('object:')} gives {output}, but the data has {classes} classes"
    if task:
        raise NetworkError(f"job {name!r}: {mismatch}, so it cannot learn them. Give it a head of {classes} outputs.")
    return f"{mismatch}."


def _plan(
    name: str,
    recipe: Recipe,
    networks: dict[str, nn.Module],
    mismatches: dict[str, str],
    sees: Mapping[str, Shape],
    classes: int,
    images: int | None,
    pair: Callable[..., Pairs],
    size: Callable[..., Counts],
) -> JobPlan:
    """Pair one job's sections and build its losses."""
    job = recipe.jobs[name]
    student, teacher = networks[name], networks.get(job.teacher or "")
    shape, shown = sees[name], sees.get(job.teacher or "", sees[name])
    try:
        pairs: Pairs = ()
        if teacher is not None and any(stage.reads_sections for stage in job.stages):
            if job.flows:
                by_hand = [(flow.teacher, flow.student) for flow in job.flows]
                pairs = pairs_by_hand(teacher, student, (1, *shown), by_hand, (1, *shape))
            else:
                pairs = pair(teacher, student, (1, *shown), (1, *shape))
        setting = Setting(teacher, student, shape, classes, teacher_shape=shown)
        built = {stage.name: _build(stage, pairs, replace(setting, shared={})) for stage in job.stages}
        if job.teacher in mismatches:
            _check_predictions(built, job.teacher, mismatches[job.teacher])
        terms = {stage: [_taps(*term) for term in stage_terms] for stage, stage_terms in built.items()}
        stored = {
            stage.name: stored_files(job, stage, built[stage.name], recipe.data, teacher, shown, images)
            for stage in job.stages
        }
        return JobPlan(name, job.network.name, size(student, shape), pairs, terms, stored, name not in mismatches)
    except (NetworkError, RecipeError) as error:
        raise type(error)(f"job {name!r}: {error}") from None


def _check_predictions(built: dict[str, list[tuple[Knowledge, Loss]]], teacher: str, why: str) -> None:
    """Check that no term reads the predictions of a teacher trained on other classes.

    Raises:
        RecipeError: a term does.
    """
    for stage, terms in built.items():
        for knowledge, loss in terms:
            if loss.same_classes:
                raise RecipeError(
                    f"stage {stage!r}: {knowledge.name} reads the predictions of {teacher!r}, but {why} "
                    "Fine-tune the teacher on these classes first, or use knowledge that reads no predictions, such as "
                    "fsp."
                )


def _build(stage: Stage, pairs: Pairs, setting: Setting) -> list[tuple[Knowledge, Loss]]:
    """Each term's knowledge and loss.

    Raises:
        RecipeError: a player has no trainable parameters.
    """
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
            raise RecipeError(
                f"{where} no term of the stage has such a module. Choose from {', '.join(sorted(parts))}."
            )
        parameters = [parameter for module in moves for parameter in module.parameters()]
        if not parameters:
            raise RecipeError(
                f"{where} they have no parameters, as in a frozen TorchScript or a quantised network. Give the Python "
                "network in float32."
            )
        if not any(parameter.requires_grad for parameter in parameters):
            raise RecipeError(f"{where} all their parameters are frozen. Unfreeze some with requires_grad_(True).")
    return losses


def _taps(knowledge: Knowledge, loss: Loss) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """A term's name with the teacher's and the student's taps."""
    return knowledge.name, tuple(map(str, loss.teacher_taps)), tuple(map(str, loss.student_taps))
