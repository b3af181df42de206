"""``train`` and ``evaluate``: from a recipe to a run folder, and from a run folder to its accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from torch import nn

from flowstill.data import open_data
from flowstill.engine.context import OnStep, Work
from flowstill.engine.evaluation import evaluate_networks
from flowstill.engine.facts import run_facts
from flowstill.engine.hardware import choose_device, make_fabric
from flowstill.engine.networks import copy_of, placed
from flowstill.engine.precision import Asked, Precision, choose
from flowstill.engine.process import run_work
from flowstill.engine.resuming import has_all, past_run
from flowstill.engine.stored import refuse_if_full
from flowstill.errors import RecipeError, RunError, option
from flowstill.files import alone_in
from flowstill.nets import build
from flowstill.recipes.check import JobPlan, check
from flowstill.recipes.load import dump_recipe, load_recipe
from flowstill.recipes.recipe import Recipe
from flowstill.reports import write_report
from flowstill.runs import Run, RunWriter
from flowstill.runs.folder import RECIPE
from flowstill.schema.code import import_used

if TYPE_CHECKING:
    from flowstill.data import ImageData


def train(
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    precision: Asked = "auto",
    progress: bool | None = None,
    on_step: OnStep | None = None,
    networks: Mapping[str, nn.Module] | None = None,
    **options: Any,
) -> Run:
    """Run a recipe's jobs and keep everything in the folder ``out``.

    The recipe, its networks and pairs, the data and the weights to start from are checked before the folder is made.
    With ``resume`` a killed run continues at the step it had reached, with the numbers that it would have given
    uninterrupted (on a CPU, bit for bit). An empty folder starts a run, and a finished run is returned unchanged. Jobs
    that were added to the recipe are trained beside those already there.

    Args:
        recipe: a Recipe, the name of a packaged one, or the path of a YAML file. The files that a Recipe object ``uses``
            are trusted.
        out: the run's folder.
        resume: continue the run in the folder, if there is one.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: number of processes that share each batch (DDP).
        precision: ``32``, ``bf16``, or ``auto``, which measures the fastest once and keeps to it.
        progress: None shows a progress bar if standard error is a terminal.
        on_step: called after each step with the job, the stage and the number of its steps done.
        networks: jobs' networks given as objects instead of built by name; copies of them are trained.
        options: ``set``, ``scale``, ``seed``, ``data_root``, ``trust_code`` of ``load_recipe``, if ``recipe`` is a name.

    Returns:
        The finished run.

    Raises:
        FlowstillError: bad input.
        KeyboardInterrupt: interrupted; the state is saved.
    """
    if precision not in ("auto", "32", "bf16"):
        raise RecipeError(f"{option('precision', precision)}: choose 'auto', '32' or 'bf16'.")
    RunWriter.refuse(out, resume=resume)
    recipe = _loaded(recipe, options)
    device = choose_device(device, devices)
    if recipe.data.batch < devices:
        raise RecipeError(
            f"data.batch is {recipe.data.batch}, too few images for {devices} processes. Use {option('devices', 1)}."
        )
    past = past_run(recipe, Path(out), networks) if resume else None
    if past and has_all(past, recipe):
        return past
    data, networks = open_data(recipe.data, seed=recipe.seed), networks or {}
    for job in recipe.jobs.values():
        data.labelled_rows(job.labels)  # raises if there are fewer
    plans = check(recipe, data.shape, len(data.classes), networks, data.rows)
    left = [plan for name, plan in plans.items() if not (past and name in past.summary.jobs)]
    refuse_if_full((file for plan in left for files in plan.stored.values() for file in files), Path(out))
    facts = past.recipe["run"] if past else None
    if facts:
        _refuse_other_conditions(facts, recipe, data, precision, out)
        chosen = Precision(**facts["precision"])
    else:
        chosen = _choose_precision(precision, recipe, data, plans, device, networks)
    writer = RunWriter.create(out, resume=resume)
    with alone_in(writer.path) as alone:
        if not alone:
            raise RunError(
                f"Another process is training in {str(out)!r}. Wait for it, or give another {option('out')}."
            )
        writer.clear_leftovers()
        if past:
            past_run(recipe, writer.path, networks)  # once more, now that nobody else can change it
        noted = {"run": facts or run_facts(chosen, device, devices, data)}
        writer.write_recipe(dump_recipe(recipe) + yaml.safe_dump(noted, sort_keys=False))
        run_work(Work(recipe, plans, chosen, networks, on_step), writer.path, device, devices, progress, data)
    run = Run.open(out)
    write_report(run)
    return run


def _loaded(recipe: Recipe | str | Path, options: dict[str, Any]) -> Recipe:
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


def _refuse_other_conditions(
    facts: dict[str, Any], recipe: Recipe, data: ImageData, precision: Asked, out: str | Path
) -> None:
    """Raises: RunError if a run cannot continue with these images or at this precision."""
    if facts["data"]["fingerprint"] != data.fingerprint:
        raise RunError(
            f"{str(out)!r} was trained on other images than {recipe.data.name!r} holds now. Give another {option('out')}."
        )
    if precision not in ("auto", facts["precision"]["dtype"]):
        raise RunError(
            f"{str(out)!r} was started at precision {facts['precision']['dtype']!r}, and keeps it. "
            f"Leave {option('precision')} out."
        )


def _choose_precision(
    asked: Asked,
    recipe: Recipe,
    data: ImageData,
    plans: dict[str, JobPlan],
    device: str,
    networks: Mapping[str, nn.Module],
) -> Precision:
    """Measure with the recipe's heaviest network, where most of the time goes."""
    training = [name for name, job in recipe.jobs.items() if not job.weights] or list(recipe.jobs)
    heaviest = max(training, key=lambda name: plans[name].counts.macs)
    spec, given = recipe.jobs[heaviest].network, networks.get(heaviest)

    def make() -> nn.Module:
        return (
            copy_of(given)
            if given is not None
            else build(spec, num_classes=len(data.classes), in_channels=data.shape[0])
        )

    return choose(asked, make, data.shape, recipe.data.batch, device)


def evaluate(
    run: Run | str | Path, *, device: str = "auto", data_root: str | Path | None = None, trust_code: bool = False
) -> dict[str, dict[str, float]]:
    """Measure a run's networks again on the test images, at the precision they were trained in.

    A teacher trained on other classes than the data's is left out, as it was while training.

    Args:
        run: the run, or its folder.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        data_root: where data sets lie, if not where the recipe says.
        trust_code: allow the Python files that the run's recipe ``uses`` or takes networks from; their code runs.

    Returns:
        job -> accuracy (top-1, percent), loss, and top5 where there are more than 5 classes.

    Raises:
        RunError: a network is missing, or comes from a file without ``trust_code``.
        RecipeError: the recipe uses a file without ``trust_code``, or one that is missing or fails.
        DataError: the images are missing.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    recipe = load_recipe(run.path / RECIPE, trust_code=trust_code)
    spec = replace(recipe.data, root=str(data_root)) if data_root else recipe.data
    data = open_data(spec, seed=recipe.seed)
    precision = Precision(**run.recipe["run"]["precision"])
    fabric = make_fabric(choose_device(device), 1, precision)
    last = precision.layout == "channels_last"
    unmeasured = {name for name, row in run.summary.jobs.items() if row.accuracy is None}
    trained = [name for name in recipe.jobs if (run.path / f"{name}.safetensors").exists() and name not in unmeasured]
    networks = {name: placed(run.network(name, trust_code=trust_code), fabric, precision) for name in trained}
    if not networks:
        raise RunError(f"{str(run.path)!r} has no trained network yet. Finish it with {option('resume', True)}.")
    scores = {
        name: evaluate_networks(fabric, [network], data, channels_last=last) for name, network in networks.items()
    }
    for name, ensemble in recipe.ensembles.items():
        if all(job in networks for job in ensemble.jobs):
            members = [networks[job] for job in ensemble.jobs]
            scores[name] = evaluate_networks(fabric, members, data, channels_last=last, mean=ensemble.mean)
    return scores
