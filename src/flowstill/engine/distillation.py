"""``distill``: two networks, images, and the name of a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from flowstill.data import Data, Facts, data_facts, open_data
from flowstill.engine.training import train
from flowstill.errors import RecipeError
from flowstill.modules import unwrapped
from flowstill.nets import Net, load_weights
from flowstill.recipes.check import on_meta
from flowstill.recipes.load import load_recipe
from flowstill.recipes.methods import find_method, method_recipe, usual_data
from flowstill.recipes.schema import Job, Recipe, Stage
from flowstill.runs import Run
from flowstill.sections import pair_sections

Given = nn.Module | Net | str


def distill(
    teacher: Given, student: Given, data: Data | str, method: str | Sequence[Stage] = "fsp", *,
    out: str | Path | None = None, teacher_weights: str | Path | None = None, labels: int | None = None,
    alone: bool = False, scale: float = 1.0, seed: int = 0, data_root: str | Path | None = None, set: Sequence[str] = (),
    trust_code: bool = False, **options: Any,
) -> Run:  # fmt: skip
    """Let ``teacher`` teach ``student`` by a method, and keep all that happens in a run folder.

    Args:
        teacher, student: networks as objects, or names as ``create`` takes them. An object of a teacher stays as it is.
            An object of a student starts from the weights that it has, and holds the trained ones afterwards, in eval
            mode on its device; until then it stays as it is.
        data: a name, with the augmentation that is usual for it, or a whole ``Data``.
        method: a name (``flowstill list methods``), or stages as the procedures in ``flowstill.transfer`` make them.
        out: the run's folder, ``runs/METHOD`` by default.
        teacher_weights: a file, for a teacher given by name.
        labels: so many labelled images for the task; what is transferred comes from all images.
        alone: train the student's network by itself as well, for as many updates, to compare with.
        scale: stretches all schedules; 1 is the papers' budget for CIFAR-10, 85 000 updates of 256 images with FSP.
        set: changes of single values, such as ``student.stages.transfer.lr=0.01``. data_root: where data sets lie.
        options: ``resume``, ``device``, ``devices``, ``precision``, ``progress``, ``on_step`` of ``train``.

    Returns: the finished Run; ``run.student`` is the student's network, the object itself if one was given.
    Raises: FlowstillError on bad input; KeyboardInterrupt once the state is saved.
    """
    objects = {name: net for name, net in (("teacher", teacher), ("student", student)) if isinstance(net, nn.Module)}
    recipe = distillation(
        teacher, student, data, method, teacher_weights=teacher_weights, labels=labels, alone=alone, scale=scale, seed=seed,
        data_root=data_root, set=set, trust_code=trust_code,
    )  # fmt: skip
    networks = dict(objects)
    if "student" in objects and alone:
        networks["student_alone"] = objects["student"]
    run = train(recipe, out or Path("runs", recipe.name), networks=networks, **options)
    for name, network in objects.items():
        if name == "student":
            load_weights(unwrapped(network), run.path / "student.safetensors")
            network.eval()
        run.keep(name, network)
    return run


def distillation(
    teacher: Given, student: Given, data: Data | str, method: str | Sequence[Stage] = "fsp", *,
    teacher_weights: str | Path | None = None, labels: int | None = None, alone: bool = False, scale: float = 1.0,
    seed: int = 0, data_root: str | Path | None = None, set: Sequence[str] = (), trust_code: bool = False,
) -> Recipe:  # fmt: skip
    """The recipe that ``distill`` trains; the arguments are its own. Raises: FlowstillError."""
    data = usual_data(data) if isinstance(data, str) else data
    taught = Job(_net(student), labels=labels)
    if isinstance(teacher, nn.Module) and teacher_weights is not None:
        raise RecipeError("teacher_weights goes with a teacher's name; a teacher given as an object has its weights.")
    if not (isinstance(teacher, nn.Module) or teacher_weights or _learned(_net(teacher), set)):
        raise RecipeError(
            f"The teacher {_net(teacher).name!r} has learned nothing. Give the file of its weights, --teacher-weights FILE "
            "(teacher_weights=FILE), or for a network of timm or torchvision --set teacher.network.options.pretrained=true."
        )
    its = Job(_net(teacher), weights=str(teacher_weights) if teacher_weights is not None else None)
    if isinstance(method, str):
        name, made = method, find_method(method)
        stages = made.stages(_sections(teacher, its, student, taught, data, data_root) if made.by_section else 0)
    else:
        name, stages = "distilled", tuple(method)
    recipe = method_recipe(name, stages, its, taught, data, alone_too=alone, seed=seed)
    return load_recipe(recipe, set=set, scale=scale, data_root=data_root, trust_code=trust_code)


def _net(given: Given) -> Net:
    if isinstance(given, nn.Module):
        network = unwrapped(given)
        return Net(f"object:{type(network).__name__}", {"parameters": sum(p.numel() for p in network.parameters())})
    return Net(given) if isinstance(given, str) else given


def _learned(teacher: Net, changes: Sequence[str]) -> bool:
    """Whether a network that is given by its name alone, or a change to the recipe, brings weights."""
    return bool(teacher.options.get("pretrained")) or any("teacher." in change.partition("=")[0] for change in changes)


def _sections(
    teacher: Given, its: Job, student: Given, taught: Job, data: Data, data_root: str | Path | None
) -> int:  # fmt: skip
    """In how many sections the two networks pair."""
    facts = data_facts(data)
    if facts is None:  # the name does not tell the images' size
        opened = open_data(replace(data, root=str(data_root)) if data_root is not None else data)
        facts = Facts(opened.shape, len(opened.classes))
    networks = [
        given if isinstance(given, nn.Module) else on_meta(job, facts.shape, facts.classes)
        for given, job in ((teacher, its), (student, taught))
    ]
    return len(pair_sections(networks[0], networks[1], facts.shape))
