"""``train`` and ``evaluate``: from a recipe to a run folder, and from a run folder to its accuracies."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from flowstill.data import open_data
from flowstill.engine.conditions import files_of, kept_precision
from flowstill.engine.context import OnStep, Work
from flowstill.engine.evaluation import evaluate_networks
from flowstill.engine.hardware import choose_device, make_fabric
from flowstill.engine.interface import find_interfaces
from flowstill.engine.networks import placed
from flowstill.engine.precision import Asked
from flowstill.engine.preparing import loaded, prepare
from flowstill.engine.process import run_work
from flowstill.engine.resuming import past_run, to_repeat
from flowstill.errors import RecipeError, RunError, option, warnings_are_errors
from flowstill.features.copying import copied
from flowstill.features.outputs import settle_logits
from flowstill.recipes.load import dump_recipe, load_recipe
from flowstill.recipes.recipe import Recipe
from flowstill.reports import write_report
from flowstill.runs import Run, RunWriter
from flowstill.runs.recipe_file import RECIPE

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
    With ``resume`` a killed run continues at the step it had reached, with the numbers of an uninterrupted run
    (on a CPU, bit for bit). In an empty folder a run starts, and a finished run is returned unchanged. Jobs
    that were added to the recipe are trained beside those already there.

    A job whose losses or weights are not finite is stopped within 50 updates. It gets no accuracy and no network, and what
    builds on it is not run; all other jobs continue. The run is returned as usual: ``run.summary.failed`` says which
    jobs and why. With ``resume`` such a job counts as done, unless the recipe now describes it differently.

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
        strict: refuse to train if something looks wrong, instead of warning.
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
    networks = networks or {}
    with warnings_are_errors(strict):
        recipe = loaded(recipe, options)
        ready = prepare(recipe, Path(out), networks, resume=resume, device=device, devices=devices, precision=precision)
    if isinstance(ready, Run):  # finished, though it may have been killed before it had cleared up
        RunWriter(ready.path).drop_state()
        return ready
    with RunWriter.create(out, resume=resume).alone() as writer:
        writer.clear_leftovers()
        if ready.past:
            past_run(recipe, writer.path, networks)  # checked again, now that no other process can change it
            writer.leave_damaged_state()
            writer.forget(to_repeat(recipe, writer.path))
        text, facts = dump_recipe(recipe), {**ready.facts, "files": files_of(recipe)}
        if not ready.past:
            facts["id"] = hashlib.sha256(f"{text}{facts}".encode()).hexdigest()[:16]
        writer.write_recipe(text + yaml.safe_dump({"run": facts}, sort_keys=False))
        work = Work(recipe, ready.plans, ready.precision, ready.interfaces, ready.networks, on_step)
        run_work(work, writer.path, ready.device, devices, progress, ready.data)
    run = Run.open(out)
    write_report(run)
    return run


def evaluate(
    run: Run | str | Path, *, device: str = "auto", data_root: str | Path | None = None, trust_code: bool = False
) -> dict[str, dict[str, float]]:
    """Measure a run's networks again on the test images, at the precision they were trained in.

    A teacher trained on classes other than the data's is left out, as in training.

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
    precision = kept_precision(run)
    fabric = make_fabric(choose_device(device), 1, precision)
    last = precision.layout == "channels_last"
    unmeasured = {name for name, row in run.summary.jobs.items() if row.accuracy is None}
    for name in run.summary.jobs:
        if not (run.path / f"{name}.safetensors").exists():
            _log.warning("%r is left out: its network %r is missing.", name, str(run.path / f"{name}.safetensors"))
    trained = [name for name in recipe.jobs if (run.path / f"{name}.safetensors").exists() and name not in unmeasured]
    networks = {name: copied(run.network(name, trust_code=trust_code)) for name in trained}
    interfaces = find_interfaces(recipe, data, {}, run.recipe["run"].get("preprocessing"))
    for name, network in networks.items():
        settle_logits(network, interfaces[name].shape, len(data.classes), trains=False)
        placed(network, fabric, precision)
    if not networks:
        raise RunError(f"{str(run.path)!r} has no trained network yet. Finish it with {option('resume', True)}.")
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
