"""Whether a recipe can continue in a run folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowstill.errors import NetworkError, RunError, option
from flowstill.features.modules import unwrapped
from flowstill.nets import fitted_weights, read_weights, weights_file
from flowstill.recipes.load import load_recipe
from flowstill.recipes.recipe import AfterStage, Job, Recipe, Weights
from flowstill.runs import Run, RunWriter, is_run
from flowstill.runs.kept import check_files, check_nothing_lost
from flowstill.runs.recipe_file import RECIPE


def stage_file(folder: Path, recipe: Recipe, job: str, stage: str) -> Path:
    """The file of a job's network after a stage; after the last stage that is the job's own file."""
    last = stage == recipe.jobs[job].stages[-1].name
    return folder / f"{job if last else f'{job}@{stage}'}.safetensors"


def forget_stages(folder: Path, jobs: tuple[str, ...]) -> None:
    """Delete the networks that an earlier attempt at these jobs kept for other jobs."""
    for path in folder.glob("*@*.safetensors"):
        if path.name.startswith(tuple(f"{job}@" for job in jobs)):
            path.unlink()


def has_all(run: Run, recipe: Recipe) -> bool:
    """Whether a run is finished and has every job and ensemble of the recipe, with none to run again."""
    done = run.summary
    has = run.finished and done.jobs.keys() >= recipe.jobs.keys() and done.ensembles.keys() >= recipe.ensembles.keys()
    return has and not to_repeat(recipe, run.path)


def to_repeat(recipe: Recipe, out: Path) -> set[str]:
    """What to run again: it has no result, since a job diverged, and the recipe now describes it differently.

    What builds on such a job is run again too.

    Returns:
        Names of jobs and ensembles.
    """
    failed = RunWriter(out).progress().failed
    if not failed:
        return set()
    before = _recipe_of(out, recipe)
    again: set[str] = set()
    for name in (name for group in recipe.groups() for name in group if name in failed):
        changed = before.jobs.get(name) != recipe.jobs[name] or before.on_nonfinite != recipe.on_nonfinite
        if changed or again.intersection(recipe.builds_on(name)):
            again.add(name)
    ensembles = {name for name, one in recipe.ensembles.items() if name in failed and again.intersection(one.jobs)}
    return again | ensembles


def past_run(recipe: Recipe, out: Path, networks: Mapping[str, nn.Module] | None = None) -> Run | None:
    """The run to continue; None if the folder holds none.

    Raises:
        RunError: the recipe does not fit the run, or the run's files are damaged.
    """
    if not is_run(out):
        return None
    run = Run.open(out)
    check_files(run)
    check_nothing_lost(run)
    for conflict in conflicts(recipe, out, networks):
        raise RunError(conflict)
    return run


def conflicts(recipe: Recipe, out: Path, networks: Mapping[str, nn.Module] | None = None) -> Iterator[str]:
    """Why a recipe cannot continue in the run folder ``out``; nothing if it can.

    Jobs that have been trained, wholly or in part, must be unchanged, and networks that were given finished, as files or
    as objects (``networks``), must hold the same weights. Other jobs may be new, changed or gone, and so may those that
    diverged, unless another job started from one of their stages.
    """
    run, there = Run.open(out), RunWriter(out).progress()
    kept = set(there.begun) - set(there.failed)
    fix = f"Resume with the options it was started with, or give another {option('out')}."
    used = run.recipe.get("uses") or []
    if gone := {Path(name).name for name in used} - {Path(name).name for name in recipe.uses}:
        yield f"{str(out)!r} was started with another recipe: its 'uses' names {', '.join(sorted(gone))}. {fix}"
        return
    before = _recipe_of(out, recipe)
    started = {job.start.job for name, job in before.jobs.items() if isinstance(job.start, AfterStage) and name in kept}
    for part in ("name", "seed", "data"):
        if getattr(before, part) != getattr(recipe, part):
            yield f"{str(out)!r} was started with another recipe: its {part!r} differs. {fix}"
    for part, names in (("jobs", there.begun), ("ensembles", tuple(run.summary.ensembles))):
        then, now = getattr(before, part), getattr(recipe, part)
        for name in names:
            if name not in now:
                yield f"{str(out)!r} was started with another recipe: it has {part}.{name}, which is missing now. {fix}"
            elif _essence(then.get(name)) != _essence(now[name]) and (name not in there.failed or name in started):
                yield f"{str(out)!r} was started with another recipe: its '{part}.{name}' differs. {fix}"
    for name in there.group:
        trained = recipe.jobs[name].stages if name in recipe.jobs else ()
        if not (there.stage in range(len(trained)) and there.step in range(trained[there.stage].steps + 1)):
            yield (
                f"Cannot resume from the state in {str(out)!r}: {name!r} has no update {there.step} of stage {there.stage}. "
                f"It belongs to another run. Restore it from a copy, or give another {option('out')}."
            )
            return
    for name, job in recipe.jobs.items():
        if isinstance(job.start, AfterStage) and name not in there.begun:
            first, stage = job.start.job, job.start.stage
            stages = [its.name for its in recipe.jobs[first].stages]
            over = (first in there.done and first not in there.failed) or (
                first in there.group and there.stage > stages.index(stage)
            )
            if over and not stage_file(out, recipe, first, stage).exists():
                yield (
                    f"{name!r} starts from {first!r} after stage {stage!r}, but {str(out)!r} did not save that network. "
                    f"Give another {option('out')}."
                )
        if name in there.done and (source := _replaced(job, out / f"{name}.safetensors", (networks or {}).get(name))):
            yield (
                f"{str(out)!r} was started with another {name!r}: {source} holds other weights now. "
                f"Give the original weights, or another {option('out')}."
            )


def _essence(part: Any) -> Any:
    """A job or an ensemble without the sentence about it, which changes nothing."""
    return replace(part, about="") if isinstance(part, Job) else part


def _recipe_of(out: Path, recipe: Recipe) -> Recipe:
    """The recipe of the run in ``out``, with the folders and files that ``recipe`` names."""
    # Files may have moved, and a run folder alone must not make code run: import what this recipe uses.
    before = load_recipe(out / RECIPE, set=[f"uses={json.dumps(recipe.uses)}"], trust_code=True)
    return replace(before, data=replace(before.data, root=recipe.data.root))  # the same images may lie elsewhere


def _is_there(file: str) -> bool:
    try:
        weights_file(file)
    except NetworkError:
        return False
    return True


def _replaced(job: Job, kept: Path, network: nn.Module | None) -> str:
    """The source of an untrained job's weights, if they now differ from the run folder's; else ''.

    A head for other classes starts fresh, so it does not count; neither does a file that is gone.
    """
    file = job.weights or (job.start.weights if isinstance(job.start, Weights) and not job.stages else None)
    if not kept.is_file() or (job.stages and not job.weights):
        return ""
    ours, given = read_weights(kept), dict[str, torch.Tensor]()
    if file and not _is_there(file):
        return ""
    if file:
        with contextlib.suppress(NetworkError):  # it no longer fits
            given = fitted_weights(ours, file)
    elif network is not None:
        given = unwrapped(network).state_dict()
    else:
        return ""
    same = all(
        name not in ours
        or ours[name].shape != tensor.shape
        or torch.equal(tensor.detach().cpu().to(ours[name].dtype), ours[name])
        for name, tensor in given.items()
    )
    same = same and not given.keys().isdisjoint(ours)
    return "" if same else f"the file {file!r}" if file else "the object"
