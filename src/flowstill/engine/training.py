"""``train``: from a recipe to a run folder."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from lightning_fabric import Fabric
from torch import nn

from flowstill.data import open_data
from flowstill.engine.context import Context, OnStep, Work
from flowstill.engine.evaluation import evaluate_networks
from flowstill.engine.hardware import choose_device, make_fabric
from flowstill.engine.networks import copy_of, placed
from flowstill.engine.precision import Asked, Precision, choose
from flowstill.engine.progress import Progress
from flowstill.engine.resuming import has_all, past_run
from flowstill.engine.session import Session
from flowstill.engine.stored import refuse_if_full
from flowstill.errors import RecipeError, RunError
from flowstill.files import alone_in
from flowstill.nets import build
from flowstill.recipes.check import JobPlan, check
from flowstill.recipes.load import dump_recipe, load_recipe
from flowstill.recipes.recipe import Recipe
from flowstill.reports import write_report
from flowstill.runs import Run, RunWriter, Summary
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
    """Run a recipe's jobs and keep all that happens in the folder ``out``.

    Everything is checked before the folder is made: the recipe, its networks and pairs, the data, the weights to start
    from. With ``resume`` a killed run goes on at the step it had reached, with the numbers that it would have given
    uninterrupted (on a CPU, bit for bit); an empty folder starts, a finished run is returned as it is. Jobs that the
    recipe has got since are trained beside those that are there.

    Args:
        recipe: a Recipe, the name of a packaged one, or the path of a YAML file. The files that a Recipe object ``uses``
            are trusted.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``. devices: so many processes share each batch (DDP).
        precision: ``auto`` measures which is quickest and keeps to it; ``32``; ``bf16``.
        progress: None shows a progress bar if standard error is a terminal.
        on_step: called after each step with the job, the stage and the steps of the stage done.
        networks: jobs' networks given as objects instead of being built by name; copies of them are trained.
        options: ``set``, ``scale``, ``seed``, ``data_root``, ``trust_code`` of ``load_recipe``, if ``recipe`` is a name.
    Returns: the finished Run. Raises: FlowstillError on bad input; KeyboardInterrupt once the state is saved.
    """
    if precision not in ("auto", "32", "bf16"):
        raise RecipeError(f"--precision {precision!r}: choose 'auto', '32' or 'bf16'.")
    RunWriter.refuse(out, resume=resume)
    if isinstance(recipe, Recipe):
        if options:
            raise RecipeError(
                f"{', '.join(options)}: these change a recipe that is loaded by name, not a Recipe object."
            )
        import_used(recipe.uses)
    else:
        recipe = load_recipe(recipe, **options)
    if not recipe.jobs:
        raise RecipeError(
            f"{recipe.name!r} draws a figure and trains nothing; `flowstill reproduce {recipe.name}` draws it."
        )
    device = choose_device(device, devices)
    if recipe.data.batch < devices:
        raise RecipeError(
            f"data.batch is {recipe.data.batch}, which {devices} processes cannot share; use --devices 1."
        )
    past = past_run(recipe, Path(out), networks) if resume else None
    if past and has_all(past, recipe):
        return past
    data = open_data(recipe.data, seed=recipe.seed)
    for job in recipe.jobs.values():
        data.labelled_rows(job.labels)  # raises if there are not so many
    networks = networks or {}
    plans = check(recipe, data.shape, len(data.classes), networks, data.rows)
    done = past.summary.jobs if past else {}
    left = [plan for name, plan in plans.items() if name not in done]
    refuse_if_full((file for plan in left for files in plan.stored.values() for file in files), Path(out))
    facts = past.recipe["run"] if past else None
    if facts and facts["data"]["fingerprint"] != data.fingerprint:
        raise RunError(
            f"{str(out)!r} was trained on other images than {recipe.data.name!r} holds now. Give another --out."
        )
    if facts and precision not in ("auto", facts["precision"]["dtype"]):
        raise RunError(
            f"{str(out)!r} was started at precision {facts['precision']['dtype']!r}, and keeps it. "
            "Leave --precision out."
        )
    chosen = (
        Precision(**facts["precision"])
        if facts
        else _choose_precision(precision, recipe, data, plans, device, networks)
    )
    writer = RunWriter.create(out, resume=resume)
    with alone_in(writer.path) as alone:
        if not alone:
            raise RunError(f"Another process is training in {str(out)!r}. Wait for it, or give another --out.")
        writer.clear_leftovers()
        if past:
            past_run(recipe, writer.path, networks)  # once more, now that nobody else can change it
        run_facts = {"run": facts or _facts(chosen, device, devices, data)}
        writer.write_recipe(dump_recipe(recipe) + yaml.safe_dump(run_facts, sort_keys=False))
        work = Work(recipe, plans, chosen, networks, on_step)
        if devices == 1:
            _work(make_fabric(device, 1, chosen), work, writer.path, progress, data)
        else:
            # As a partial: Fabric walks through arguments, and stops at frozen dataclasses.
            spawned = partial(_spawned_work, Used(recipe.uses), work=work, out=writer.path, progress=progress)
            make_fabric(device, devices, chosen).launch(spawned)
    run = Run.open(out)
    write_report(run)
    return run


class Used:
    """What a recipe uses, imported wherever this is made or unpickled.

    As the first argument of a spawned process it is unpickled before the recipe, whose classes are defined there.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        import_used(names)

    def __reduce__(self) -> tuple[type[Used], tuple[tuple[str, ...]]]:
        return Used, (self.names,)


def _spawned_work(used: Used, fabric: Fabric, **arguments: Any) -> None:
    """The part of a process that was spawned, with what the recipe uses imported."""
    _work(fabric, **arguments)


def _work(fabric: Fabric, work: Work, out: Path, progress: bool | None, data: ImageData | None = None) -> None:
    """One process's part. data: None to open it here."""
    recipe = work.recipe
    data = data or open_data(recipe.data, seed=recipe.seed)
    summary = _blank_summary(recipe, work.precision, fabric)
    past = Run.open(out).summary
    if past.finished:  # its recipe has got more jobs since
        summary.jobs, summary.ensembles = past.jobs, past.ensembles
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    # The seeds set along the way stay in here.
    shows = progress if fabric.global_rank == 0 else False
    with torch.random.fork_rng(devices=devices), Progress(shows) as shown, RunWriter(out) as writer:
        Session(Context(fabric, work, data, writer, shown), summary).run()
    if fabric.world_size > 1:  # its threads, left running, can abort a process that is done
        fabric.barrier()
        torch.distributed.destroy_process_group()


def _choose_precision(
    asked: Asked,
    recipe: Recipe,
    data: ImageData,
    plans: dict[str, JobPlan],
    device: str,
    networks: Mapping[str, nn.Module],
) -> Precision:
    """By the recipe's heaviest network, where most of the time goes."""
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


def _facts(precision: Precision, device: str, devices: int, data: ImageData) -> dict[str, Any]:
    """What the recipe does not say and a resumed run must know."""
    return {
        "precision": {"dtype": precision.dtype, "layout": precision.layout},
        "device": device,
        "devices": devices,
        "data": {
            "channels": data.shape[0],
            "size": list(data.shape[1:]),
            "classes": len(data.classes),
            "class_names": list(data.classes),
            "fingerprint": data.fingerprint,
        },
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    packages = ("flowstill", "torch", "torchvision", "lightning-fabric", "timm", "datasets", "numpy")
    there = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    return {"python": platform.python_version(), **{name: there[name] for name in packages if name in there}}


def _blank_summary(recipe: Recipe, precision: Precision, fabric: Fabric) -> Summary:
    return Summary(
        recipe=recipe.name,
        seed=recipe.seed,
        device=str(fabric.device.type),
        devices=fabric.world_size,
        precision={"dtype": precision.dtype, "layout": precision.layout},
        versions=_versions(),
        command=shlex.join(["flowstill", *sys.argv[1:]]) if Path(sys.argv[0]).name == "flowstill" else "",
    )


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
    networks = {name: placed(run.network(name, trust_code=trust_code), fabric, precision) for name in trained}
    if not networks:
        raise RunError(f"{str(run.path)!r} has no trained network yet. Finish it with --resume.")
    scores = {
        name: evaluate_networks(fabric, [network], data, channels_last=last) for name, network in networks.items()
    }
    for name, ensemble in recipe.ensembles.items():
        if all(job in networks for job in ensemble.jobs):
            members = [networks[job] for job in ensemble.jobs]
            scores[name] = evaluate_networks(fabric, members, data, channels_last=last, mean=ensemble.mean)
    return scores
