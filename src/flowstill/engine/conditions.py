"""What a run's numbers depend on besides its recipe: recorded when it starts, compared when it resumes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from flowstill.engine.facts import versions
from flowstill.engine.hardware import choose_device
from flowstill.engine.precision import Precision
from flowstill.errors import RecipeError, RunError, option
from flowstill.files import digest_of
from flowstill.recipes.recipe import Recipe, Weights
from flowstill.runs import Run, is_run
from flowstill.runs.recipe_file import RECIPE
from flowstill.schema.code import is_file

_OTHERWISE = "The result can differ from that of an uninterrupted run"
_log = logging.getLogger("flowstill")


def files_of(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of each file that the recipe takes weights or code from, by the name that the recipe gives it."""
    return {name: digest_of(Path(name).expanduser()) for name in _named(recipe) if Path(name).expanduser().is_file()}


def _named(recipe: Recipe) -> Iterator[str]:
    yield from filter(is_file, recipe.uses)
    for job in recipe.jobs.values():
        file, _, _ = job.network.name.rpartition(":")
        if is_file(file):
            yield file
        if job.weights:
            yield job.weights
        if isinstance(job.start, Weights):
            yield job.start.weights


def check_given_networks(recipe: Recipe) -> None:
    """Check that weights taken from other run folders have not changed since those runs saved them.

    Raises:
        RunError: a file was damaged or replaced.
    """
    for name in _named(recipe):
        path = Path(name).expanduser()
        if path.suffix == ".safetensors" and is_run(path.parent):
            Run.open(path.parent).check_network(path.stem)


def kept_precision(run: Run) -> Precision:
    """The precision that the run was started with.

    Raises:
        RunError: the run folder does not record it.
    """
    found = {name: run.fact(str, "precision", name) for name in ("dtype", "layout")}
    choices = {"dtype": ("32", "bf16"), "layout": ("contiguous", "channels_last")}
    for name, value in found.items():
        if value not in choices[name]:
            raise RunError(
                f"{str(run.path / RECIPE)!r}: run.precision.{name}: expected {' or '.join(map(repr, choices[name]))}. "
                f"Received: {value!r}. It was edited by hand; restore it."
            )
    return Precision(**found)  # type: ignore[arg-type]  # checked above


def kept_device(run: Run, asked: str, chosen: str, devices: int) -> str:
    """The device to continue a run on: the one that it was started on.

    Args:
        run: the run.
        asked: ``--device``; ``auto`` takes the run's.
        chosen: what ``asked`` means on this machine.
        devices: number of processes.

    Raises:
        RunError: another device, or another number of them.
    """
    facts = run.recipe.get("run") or {}
    begun, count = facts.get("device") or chosen, facts.get("devices") or devices
    where = f"{str(run.path)!r} was started"
    if count != devices:
        raise RunError(
            f"{where} with {option('devices', count)}. Continue with {option('devices', count)}, or give "
            f"another {option('out')}."
        )
    if begun != chosen and asked != "auto":
        raise RunError(
            f"{where} on {begun!r}. Continue with {option('device', begun)}, or give another {option('out')}."
        )
    try:
        return choose_device(begun, devices)
    except RecipeError as error:
        raise RunError(
            f"{where} on {begun!r} and cannot continue on another device: {error} Or give another {option('out')}."
        ) from None


def warn_of_changes(run: Run, recipe: Recipe, device: str) -> None:
    """Warn about changed packages, threads and files, which may change the run's numbers.

    What the folder does not record is not compared; earlier versions recorded less.
    """
    facts = run.recipe.get("run") or {}
    before, now = facts.get("versions") or {}, versions()
    common = [name for name in before if name in now and name != "python"]
    changed = [f"{name} {before[name]} (now {now[name]})" for name in common if before[name] != now[name]]
    threads = facts.get("threads")
    if device == "cpu" and threads not in (None, torch.get_num_threads()):
        changed.append(f"{threads} threads (now {torch.get_num_threads()}; set OMP_NUM_THREADS={threads})")
    if changed:
        _log.warning("%r was started with %s. %s in the last digits.", str(run.path), ", ".join(changed), _OTHERWISE)
    # Files may have moved since, so they are compared by file name, without the folder.
    noted = {Path(name).name: digest for name, digest in (facts.get("files") or {}).items()}
    for name, digest in files_of(recipe).items():
        if noted.get(Path(name).name, digest) != digest:
            _log.warning("%r has changed since %r was started. %s.", name, str(run.path), _OTHERWISE)
