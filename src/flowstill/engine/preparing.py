"""Checks a recipe and prepares it for training before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from flowstill.data import open_data
from flowstill.engine.conditions import check_given_networks, kept_device, kept_precision, warn_of_changes
from flowstill.engine.facts import run_facts
from flowstill.engine.hardware import choose_device
from flowstill.engine.interface import Interface, find_interfaces
from flowstill.engine.look import Look
from flowstill.engine.networks import ready
from flowstill.engine.precision import Asked, Precision, choose, needing_float32
from flowstill.engine.resuming import has_all, past_run, to_repeat
from flowstill.engine.stored import refuse_if_full
from flowstill.engine.trial import try_jobs
from flowstill.errors import NetworkError, RecipeError, RunError, option
from flowstill.features.copying import copied, fill_lazy, is_lazy
from flowstill.features.modules import Shape
from flowstill.features.outputs import settle_logits
from flowstill.recipes.check import JobPlan, check
from flowstill.recipes.load import load_recipe
from flowstill.recipes.recipe import Recipe
from flowstill.runs import Run
from flowstill.schema.code import import_used

if TYPE_CHECKING:
    from flowstill.data import ImageData

_log = logging.getLogger("flowstill")


@dataclass(frozen=True)
class Prepared:
    """A recipe that can be trained.

    Attributes:
        recipe: what it says.
        data: the images.
        networks: copies of those that were given as objects, by the job's name.
        interfaces: how each job's network sees the images.
        plans: what each job will do.
        precision: number format and memory layout.
        device: where to train.
        facts: what the run folder records of all this.
        past: the run to continue; None for a new one.
    """

    recipe: Recipe
    data: ImageData
    networks: Mapping[str, nn.Module]
    interfaces: Mapping[str, Interface]
    plans: Mapping[str, JobPlan]
    precision: Precision
    device: str
    facts: Mapping[str, Any]
    past: Run | None


def prepare(
    recipe: Recipe,
    out: Path,
    networks: Mapping[str, nn.Module],
    *,
    resume: bool,
    device: str,
    devices: int,
    precision: Asked,
) -> Prepared | Run:
    """Check everything that can be checked before training; nothing is written.

    Returns:
        The run itself if it is resumed and already has everything.

    Raises:
        FlowstillError: bad input.
    """
    chosen_device = choose_device(device, devices)
    if recipe.data.batch < devices:
        raise RecipeError(
            f"data.batch is {recipe.data.batch}, too few images for {devices} processes. Use {option('devices', 1)}."
        )
    past = past_run(recipe, out, networks) if resume else None
    if past and has_all(past, recipe):
        return past
    data = open_data(recipe.data, seed=recipe.seed)
    for job in recipe.jobs.values():
        data.labelled_rows(job.labels)  # raises if there are fewer
    facts = past.fact(dict) if past else {}
    interfaces = find_interfaces(recipe, data, networks, facts.get("preprocessing"))
    shapes = {name: interface.shape for name, interface in interfaces.items()}
    copies = _copies(networks, recipe, shapes, len(data.classes))
    plans = check(recipe, data.shape, len(data.classes), copies, data.rows, shapes)
    done = set(past.summary.jobs) - to_repeat(recipe, past.path) if past else set()
    left = tuple(name for name in plans if name not in done)
    refuse_if_full((file for name in left for files in plans[name].stored.values() for file in files), out)
    check_given_networks(recipe)
    float32 = needing_float32(recipe, done)
    if past:
        chosen_device = kept_device(past, device, chosen_device, devices)
        chosen = kept_precision(past)
        _refuse_other_conditions(past, chosen, recipe, data, precision)
        warn_of_changes(past, recipe, chosen_device)
    else:
        chosen = _choose_precision(
            precision, recipe, shapes, len(data.classes), plans, chosen_device, copies, bool(float32)
        )
    _say_precision(chosen, float32, precision, resumed=past is not None)
    try_jobs(recipe, plans, copies, shapes, len(data.classes), chosen_device, done)
    interfaces = Look(recipe, data, copies, interfaces, plans, chosen_device).at(left)
    noted = facts or run_facts(chosen, chosen_device, devices, data, float32 if precision == "auto" else ())
    noted = {**noted, "preprocessing": {name: interface.to_facts() for name, interface in interfaces.items()}}
    return Prepared(recipe, data, copies, interfaces, plans, chosen, chosen_device, noted, past)


def loaded(recipe: Recipe | str | Path, options: dict[str, Any]) -> Recipe:
    """The recipe, with what it uses imported.

    Raises:
        RecipeError: options beside a Recipe object, or a recipe that trains nothing.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, **options)
    elif options:
        raise RecipeError(f"{', '.join(options)}: these change a recipe loaded by name, not a Recipe object.")
    else:
        import_used(recipe.uses)
    if not recipe.jobs:
        raise RecipeError(
            f"{recipe.name!r} draws a figure and trains nothing; `flowstill reproduce {recipe.name}` draws it."
        )
    return recipe


def _copies(
    networks: Mapping[str, nn.Module], recipe: Recipe, shapes: Mapping[str, Shape], classes: int
) -> dict[str, nn.Module]:
    """Copy each network that was given as an object; the copy's forward returns the logits alone.

    Raises:
        NetworkError: one cannot be copied or run, or it is unclear which output holds the logits.
    """
    copies: dict[nn.Module, nn.Module] = {}
    for name, network in networks.items():
        try:
            if recipe.jobs[name].trains:
                _refuse_exported(network)
            if is_lazy(network):
                fill_lazy(network, shapes[name])
            if network not in copies:
                copies[network] = copied(network)
            settle_logits(copies[network], shapes[name], classes, trains=recipe.jobs[name].trains)
        except NetworkError as error:
            raise NetworkError(f"job {name!r}: {error}") from error
    return {name: copies[network] for name, network in networks.items()}


def _refuse_exported(network: nn.Module) -> None:
    """Raises: NetworkError if the network has no training mode."""
    if any(isinstance(module, torch.fx.GraphModule) and "train" in vars(module) for module in network.modules()):
        raise NetworkError(
            "The module of an ExportedProgram cannot be trained: its graph has no training mode. Give the Python network."
        )


def _refuse_other_conditions(past: Run, precision: Precision, recipe: Recipe, data: ImageData, asked: Asked) -> None:
    """Raises: RunError if a run cannot continue with these images or at this precision."""
    if past.fact(str, "data", "fingerprint") != data.fingerprint:
        raise RunError(
            f"{str(past.path)!r} was trained on other images than {recipe.data.name!r} holds now. Give "
            f"another {option('out')}."
        )
    if asked not in ("auto", precision.dtype):
        raise RunError(
            f"{str(past.path)!r} was started at precision {precision.dtype!r} and continues at it. Leave "
            f"{option('precision')} out."
        )


def _choose_precision(
    asked: Asked,
    recipe: Recipe,
    shapes: Mapping[str, Shape],
    classes: int,
    plans: Mapping[str, JobPlan],
    device: str,
    networks: Mapping[str, nn.Module],
    float32: bool,
) -> Precision:
    """Measure with the recipe's heaviest network, where most of the time goes."""
    training = [name for name, job in recipe.jobs.items() if not job.weights] or list(recipe.jobs)
    heaviest = max(training, key=lambda name: plans[name].counts.macs)
    spec, given = recipe.jobs[heaviest].network, networks.get(heaviest)

    def make() -> nn.Module:
        return ready(given, spec, shapes[heaviest], classes)

    return choose(asked, make, shapes[heaviest], recipe.data.batch, device, float32)


def _say_precision(chosen: Precision, float32: Sequence[str], asked: Asked, *, resumed: bool) -> None:
    """Warn if bfloat16 will spoil a gradient; log if that decided the precision."""
    names = ", ".join(float32)
    if float32 and chosen.dtype == "bf16":
        fix = f"Use {option('precision', '32')}, or auto."
        if resumed:
            fix = f"Give another {option('out')} to train at float32."
        _log.warning("precision bf16: expected float32 for %s; bfloat16 makes the gradients noisy. %s", names, fix)
    elif float32 and asked == "auto" and not resumed:
        _log.info("precision: float32 for the whole run, since the gradients of %s need it", names)
