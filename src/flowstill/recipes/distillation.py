"""The recipe that ``distill`` trains: two networks, images, and the name of a method."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from flowstill.data import Data, find_facts
from flowstill.data.given import set_name
from flowstill.errors import RecipeError, option
from flowstill.features.copying import copied, fill_lazy, is_lazy
from flowstill.features.modules import unwrapped
from flowstill.features.outputs import settle_logits
from flowstill.features.pairs import pair_sections
from flowstill.nets import Net
from flowstill.recipes.check import on_meta
from flowstill.recipes.load import load_recipe
from flowstill.recipes.methods import method_recipe, usual_data
from flowstill.recipes.recipe import Job, Recipe, Stage
from flowstill.schema.code import import_used
from flowstill.transfer.methods import find_method

Given = nn.Module | Net | str | os.PathLike[str]


def distillation(
    teacher: Given,
    student: Given,
    data: Data | str | os.PathLike[str],
    method: str | Stage | Sequence[Stage] = "kd",
    *,
    teacher_weights: str | Path | None = None,
    teacher_is_trained: bool = False,
    labels: int | None = None,
    alone: bool = False,
    scale: float = 1.0,
    seed: int = 0,
    data_root: str | Path | None = None,
    set: Sequence[str] | str = (),
    uses: Sequence[str | Path] | str | Path = (),
) -> Recipe:
    """The recipe for these networks, images and method; see ``flowstill.distill`` for the arguments.

    Raises:
        FlowstillError: bad input.
    """
    used = tuple(map(str, (uses,) if isinstance(uses, (str, os.PathLike)) else uses))
    import_used(used)
    changes = (set,) if isinstance(set, str) else tuple(set)
    if teacher is student and isinstance(teacher, nn.Module):
        raise RecipeError("teacher and student are the same object. Give copy.deepcopy(...) of it as the student.")
    if isinstance(teacher, nn.Module) and teacher_weights is not None:
        raise RecipeError(
            f"{option('teacher_weights')} belongs to a teacher given by name. Leave it out: a teacher given as an object "
            "has its own."
        )
    if teacher_is_trained and teacher_weights is not None:
        raise RecipeError(
            f"{option('teacher_is_trained', True)} says that the teacher is built with its weights, and "
            f"{option('teacher_weights')} names others. Give one of them."
        )
    weights = None if teacher_weights is None else str(teacher_weights)
    trained = teacher_is_trained and not isinstance(teacher, nn.Module)
    large = Job(_net("teacher", teacher), weights=weights, start="trained" if trained else None)
    small = Job(_net("student", student), labels=labels)
    if not (isinstance(teacher, nn.Module) or trained or large.weights or _learned(large.network, changes)):
        raise RecipeError(
            f"The teacher {large.network.name!r} has no trained weights. Give the file that holds them, "
            f"{option('teacher_weights', 'FILE')}, or for a timm or torchvision network "
            f"{option('set', 'teacher.network.options.pretrained=true')}. If your own function loads them, say "
            f"{option('teacher_is_trained', True)}."
        )
    data = data if isinstance(data, Data) else usual_data(set_name(data))

    def recipe(stages: tuple[Stage, ...], changes: Sequence[str]) -> Recipe:
        both = any(update.task and update.transfer for stage in stages for update in stage.updates)
        seen = replace(data, unlabelled=data.batch) if labels and both and not data.unlabelled else data
        whole = replace(method_recipe(name, stages, large, small, seen, alone_too=alone, seed=seed), uses=used)
        return load_recipe(whole, set=changes, scale=scale, data_root=data_root)

    if not isinstance(method, str):
        name, stages = "distilled", (method,) if isinstance(method, Stage) else tuple(method)
        if not stages:
            raise RecipeError("method is an empty list of stages. Give a method's name, or at least one stage.")
    else:
        name, found = method, find_method(method)
        stages = found.stages(1)
    others = [change for change in changes if "stages" not in change.partition("=")[0]]
    lazy = [given for given in (teacher, student) if isinstance(given, nn.Module) and is_lazy(given)]
    for network in lazy:  # the images that the changes result in give them their sizes
        fill_lazy(network, find_facts(recipe(stages, others).data).shape)
    if lazy:
        large, small = (
            replace(large, network=_net("teacher", teacher)),
            replace(small, network=_net("student", student)),
        )
    if not isinstance(method, str):
        return recipe(stages, changes)
    sections = 0
    if found.by_section:  # counted with the networks and images that the changes result in
        sections = _sections(recipe(found.stages(1), others), teacher, student)
    return recipe(found.stages(sections), changes)


def _net(role: str, given: Given) -> Net:
    """The network's specification.

    Raises:
        RecipeError: neither a network nor a network's name.
    """
    if isinstance(given, nn.Module):
        network = unwrapped(given)
        return Net(f"object:{type(network).__name__}", {"parameters": 0 if is_lazy(network) else _size(network)})
    if isinstance(given, Net):
        return given
    if isinstance(given, torch.export.ExportedProgram):
        raise RecipeError(f"The {role} is an ExportedProgram. Give its module: {role}=program.module().")
    if not isinstance(given, (str, os.PathLike)):
        raise RecipeError(
            f"Expected a network or its name (see `flowstill list nets`) as the {role}. Received: {given!r}."
        )
    name = os.fspath(given)
    if name.endswith(".py"):
        raise RecipeError(f"The {role} {name!r} is a file. To use a function in it, write '{name}:FUNCTION'.")
    if os.path.exists(name):
        raise RecipeError(
            f"The {role} {name!r} is a file or folder, not a network's name. Name the network, and give the teacher's "
            f"weights separately: {option('teacher', 'NET')} {option('teacher_weights', 'FILE')}."
        )
    return Net(name)


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _learned(teacher: Net, changes: Sequence[str]) -> bool:
    """Whether a teacher given by name gets weights: pretrained ones, or by a change to the recipe."""
    keys = [change.partition("=")[0] for change in changes]
    brings = ("teacher.weights", "teacher.stages", "teacher.start", "teacher.network")
    return bool(teacher.options.get("pretrained")) or any(key.removeprefix("jobs.").startswith(brings) for key in keys)


def _sections(recipe: Recipe, teacher: Given, student: Given) -> int:
    """The number of sections in which the two networks pair."""
    if recipe.jobs["student"].flows:
        return len(recipe.jobs["student"].flows)
    facts = find_facts(recipe.data)
    networks = [
        copied(given) if isinstance(given, nn.Module) else on_meta(recipe.jobs[name], facts.shape, facts.classes)
        for name, given in (("teacher", teacher), ("student", student))
    ]
    for network in networks:
        settle_logits(network, facts.shape, facts.classes, trains=False)
    return len(pair_sections(networks[0], networks[1], facts.shape))
