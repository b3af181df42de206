"""``train`` and ``evaluate``: from a recipe to a run folder, and from a run folder to its accuracies."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import nn

from flowstill.data import open_data
from flowstill.engine.context import OnStep, Work
from flowstill.engine.evaluation import evaluate_networks
from flowstill.engine.facts import run_facts
from flowstill.engine.hardware import choose_device, make_fabric
from flowstill.engine.interface import find_interfaces
from flowstill.engine.look import Look
from flowstill.engine.networks import placed, ready
from flowstill.engine.precision import Asked, Precision, choose, needing_float32
from flowstill.engine.process import run_work
from flowstill.engine.resuming import has_all, past_run, to_repeat
from flowstill.engine.stored import refuse_if_full
from flowstill.engine.trial import try_jobs
from flowstill.errors import NetworkError, RecipeError, RunError, warnings_are_errors
from flowstill.features.copying import copied, fill_lazy, is_lazy
from flowstill.features.modules import Shape
from flowstill.features.outputs import settle_logits
from flowstill.files import alone_in
from flowstill.recipes.check import JobPlan, check
from flowstill.recipes.load import dump_recipe, load_recipe
from flowstill.recipes.recipe import Recipe
from flowstill.reports import write_report
from flowstill.runs import Run, RunWriter
from flowstill.runs.folder import RECIPE
from flowstill.schema.code import import_used

if TYPE_CHECKING:
    from flowstill.data import ImageData

_log = logging.getLogger("flowstill")


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
    strict: bool = False,
    **options: Any,
) -> Run:
    """Run a recipe's jobs and keep everything in the folder ``out``.

    The recipe, its networks and pairs, the data and the weights to start from are checked before the folder is made.
    With ``resume`` a killed run continues at the step it had reached, with the numbers that it would have given
    uninterrupted (on a CPU, bit for bit). An empty folder starts a run, and a finished run is returned unchanged. Jobs
    that were added to the recipe are trained beside those already there.

    A job whose losses or weights are not finite is stopped within 50 updates. It gets no accuracy and no network, and what
    builds on it is not run; all other jobs go on. The run is returned like any other: ``run.summary.failed`` says which
    jobs and why. With ``resume`` such a job counts as done, unless the recipe now describes it otherwise.

    Args:
        recipe: a Recipe, the name of a packaged one, or the path of a YAML file. The files that a Recipe object ``uses``
            are trusted.
        out: the run's folder.
        resume: continue the run in the folder, if there is one.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: number of processes that share each batch (DDP).
        precision: ``32``, ``bf16``, or ``auto``, which measures the fastest once and keeps to it; only float32 if a
            knowledge in the recipe needs it (SVD of rank 2 and more, NST).
        progress: None shows a progress bar if standard error is a terminal.
        on_step: called after each step with the job, the stage and the number of its steps done.
        networks: jobs' networks given as objects instead of built by name; copies of them are trained.
        strict: refuse to train where something is odd, instead of warning.
        options: ``set``, ``scale``, ``seed``, ``data_root``, ``trust_code`` of ``load_recipe``, if ``recipe`` is a name.

    Returns:
        The finished run.

    Raises:
        FlowstillError: bad input.
        KeyboardInterrupt: interrupted; the state is saved.
    """
    if precision not in ("auto", "32", "bf16"):
        raise RecipeError(f"--precision {precision!r}: choose 'auto', '32' or 'bf16'.")
    RunWriter.refuse(out, resume=resume)
    with warnings_are_errors(strict):
        recipe = _loaded(recipe, options)
        device = choose_device(device, devices)
        if recipe.data.batch < devices:
            raise RecipeError(
                f"data.batch is {recipe.data.batch}, too few images for {devices} processes. Use --devices 1."
            )
        past = past_run(recipe, Path(out), networks) if resume else None
        if past and has_all(past, recipe):
            return past
        data = open_data(recipe.data, seed=recipe.seed)
        for job in recipe.jobs.values():
            data.labelled_rows(job.labels)  # raises if there are fewer
        facts = past.recipe["run"] if past else {}
        interfaces = find_interfaces(recipe, data, networks or {}, facts.get("preprocessing"))
        shapes = {name: interface.shape for name, interface in interfaces.items()}
        networks = _copies(networks or {}, recipe, shapes, len(data.classes))
        plans = check(recipe, data.shape, len(data.classes), networks, data.rows, shapes)
        done = set(past.summary.jobs) - to_repeat(recipe, past.path) if past else set()
        try_jobs(recipe, plans, networks, shapes, len(data.classes), device, done)
        left = tuple(name for name in plans if name not in done)
        refuse_if_full((file for name in left for files in plans[name].stored.values() for file in files), Path(out))
        float32 = needing_float32(recipe, past.summary.jobs if past else ())
        if facts:
            _refuse_other_conditions(facts, recipe, data, precision, out)
            chosen = Precision(**facts["precision"])
        else:
            chosen = _choose_precision(precision, recipe, data, plans, device, networks, bool(float32))
        _say_precision(chosen, float32, precision, resumed=bool(facts))
        interfaces = Look(recipe, data, networks, interfaces, plans, device).at(left)
    writer = RunWriter.create(out, resume=resume)
    with alone_in(writer.path) as alone:
        if not alone:
            raise RunError(f"Another process is training in {str(out)!r}. Wait for it, or give another --out.")
        writer.clear_leftovers()
        if past:
            past_run(recipe, writer.path, networks)  # once more, now that nobody else can change it
            writer.forget(to_repeat(recipe, writer.path))
        facts = facts or run_facts(chosen, device, devices, data, float32 if precision == "auto" else ())
        facts["preprocessing"] = {name: interface.to_facts() for name, interface in interfaces.items()}
        writer.write_recipe(dump_recipe(recipe) + yaml.safe_dump({"run": facts}, sort_keys=False))
        run_work(
            Work(recipe, plans, chosen, interfaces, networks, on_step), writer.path, device, devices, progress, data
        )
    run = Run.open(out)
    write_report(run)
    return run


def _copies(
    networks: Mapping[str, nn.Module], recipe: Recipe, shapes: Mapping[str, Shape], classes: int
) -> dict[str, nn.Module]:
    """Copies of networks that were given as objects, one for each object, whose forward returns the logits alone.

    Raises:
        NetworkError: one cannot be copied or run, or which of its outputs the logits are is not clear.
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
            f"{str(out)!r} was trained on other images than {recipe.data.name!r} holds now. Give another --out."
        )
    if precision not in ("auto", facts["precision"]["dtype"]):
        raise RunError(
            f"{str(out)!r} was started at precision {facts['precision']['dtype']!r}, and keeps it. Leave --precision out."
        )


def _choose_precision(
    asked: Asked,
    recipe: Recipe,
    data: ImageData,
    plans: dict[str, JobPlan],
    device: str,
    networks: Mapping[str, nn.Module],
    float32: bool,
) -> Precision:
    """Measure with the recipe's heaviest network, where most of the time goes."""
    training = [name for name, job in recipe.jobs.items() if not job.weights] or list(recipe.jobs)
    heaviest = max(training, key=lambda name: plans[name].counts.macs)
    spec, given = recipe.jobs[heaviest].network, networks.get(heaviest)

    def make() -> nn.Module:
        return ready(given, spec, data.shape, len(data.classes))

    return choose(asked, make, data.shape, recipe.data.batch, device, float32)


def _say_precision(chosen: Precision, float32: Sequence[str], asked: Asked, *, resumed: bool) -> None:
    """Warn where a gradient will be spoiled; note where that decided the precision."""
    names = ", ".join(float32)
    if float32 and chosen.dtype == "bf16":
        fix = "Give another --out to train at float32." if resumed else "Use --precision 32, or auto."
        _log.warning("precision bf16: expected float32 for %s, whose gradients bfloat16 makes noisy. %s", names, fix)
    elif float32 and asked == "auto" and not resumed:
        _log.info("precision: float32 for the whole run, since the gradients of %s need it", names)


def evaluate(
    run: Run | str | Path, *, device: str = "auto", data_root: str | None = None, trust_code: bool = False
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
    spec = replace(recipe.data, root=data_root) if data_root else recipe.data
    data = open_data(spec, seed=recipe.seed)
    precision = Precision(**run.recipe["run"]["precision"])
    fabric = make_fabric(choose_device(device), 1, precision)
    last = precision.layout == "channels_last"
    unmeasured = {name for name, row in run.summary.jobs.items() if row.accuracy is None}
    trained = [name for name in recipe.jobs if (run.path / f"{name}.safetensors").exists() and name not in unmeasured]
    networks = {name: copied(run.network(name, trust_code=trust_code)) for name in trained}
    interfaces = find_interfaces(recipe, data, {}, run.recipe["run"].get("preprocessing"))
    for name, network in networks.items():
        settle_logits(network, interfaces[name].shape, len(data.classes), trains=False)
        placed(network, fabric, precision)
    if not networks:
        raise RunError(f"{str(run.path)!r} has no trained network yet. Finish it with --resume.")
    scores = {
        name: evaluate_networks(fabric, [network], data, interfaces=[interfaces[name]], channels_last=last)
        for name, network in networks.items()
    }
    for name, ensemble in recipe.ensembles.items():
        if all(job in networks for job in ensemble.jobs):
            members = [networks[job] for job in ensemble.jobs]
            views = [interfaces[job] for job in ensemble.jobs]
            scores[name] = evaluate_networks(
                fabric, members, data, interfaces=views, channels_last=last, mean=ensemble.mean
            )
    return scores
