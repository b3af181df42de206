"""``distill``: two networks, images, and the name of a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from flowstill.data import Data, find_facts
from flowstill.engine.context import OnStep
from flowstill.engine.precision import Asked
from flowstill.engine.training import train
from flowstill.errors import RecipeError, RunError
from flowstill.features.modules import unwrapped
from flowstill.features.sections import pair_sections
from flowstill.nets import Net, load_weights
from flowstill.recipes.check import on_meta
from flowstill.recipes.load import load_recipe
from flowstill.recipes.methods import method_recipe, usual_data
from flowstill.recipes.recipe import Job, Recipe, Stage
from flowstill.runs import Run, is_run
from flowstill.schema.code import import_used
from flowstill.transfer.methods import find_method

Given = nn.Module | Net | str


def distill(
    teacher: Given,
    student: Given,
    data: Data | str,
    method: str | Stage | Sequence[Stage] = "kd",
    *,
    out: str | Path | None = None,
    teacher_weights: str | Path | None = None,
    labels: int | None = None,
    alone: bool = False,
    scale: float = 1.0,
    seed: int = 0,
    data_root: str | Path | None = None,
    set: Sequence[str] | str = (),
    uses: Sequence[str] | str = (),
    trust_code: bool = False,
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    precision: Asked = "auto",
    progress: bool | None = None,
    on_step: OnStep | None = None,
) -> Run:
    """Let ``teacher`` teach ``student`` by a method, and keep all that happens in a run folder.

    Args:
        teacher, student: networks as objects, or names as ``create`` takes them. An object of a teacher stays as it is.
            An object of a student starts from the weights that it has, and holds the trained ones afterwards, in eval
            mode on its device; until then it stays as it is.
        data: a name, with the augmentation that is usual for it, or a whole ``Data``.
        method: a name (``flowstill list methods``), or stages as ``flowstill.transfer.procedures`` makes them. Soft logits,
            the default, go with any two networks of the same classes, and were best, or level with the best, in most
            trials; docs/results says which to choose when.
        out: the run's folder, ``runs/METHOD`` by default.
        teacher_weights: a file, for a teacher given by name.
        labels: so many labelled images for the task. What is transferred comes from all images: where both go on in one
            update, as many images without label join its batch, unless ``data`` says how many.
        alone: train the student's network by itself as well, for as many updates, to compare with.
        scale: stretches all schedules; 1 is the papers' budget for CIFAR-10, 85 000 updates of 256 images with FSP.
        set: changes of single values, such as ``student.stages.transfer.lr=0.01``. data_root: where data sets lie.
        uses: installed modules and Python files to import first, such as one that registers the method.
        resume, device, devices, precision, progress, on_step: of ``train``.

    Returns: the finished Run; ``run.student`` is the student's network, the object itself if one was given.
    Raises: FlowstillError on bad input; KeyboardInterrupt once the state is saved.
    """
    recipe = distillation(
        teacher,
        student,
        data,
        method,
        teacher_weights=teacher_weights,
        labels=labels,
        alone=alone,
        scale=scale,
        seed=seed,
        data_root=data_root,
        set=set,
        uses=uses,
        trust_code=trust_code,
    )
    folder = Path(out or Path("runs", recipe.name))
    objects = {name: net for name, net in (("teacher", teacher), ("student", student)) if isinstance(net, nn.Module)}
    networks = {name: unwrapped(network) for name, network in objects.items()}
    if alone and "student" in networks:
        networks["student_alone"] = networks["student"]
        if resume and is_run(folder) and "student_alone" not in Run.open(folder).jobs:
            raise RunError(
                f"{str(folder)!r} was begun without alone=True, and the student's object may hold what it "
                "learned there. Give another out, and an object with fresh weights."
            )
    run = train(
        recipe,
        folder,
        resume=resume,
        device=device,
        devices=devices,
        precision=precision,
        progress=progress,
        on_step=on_step,
        networks=networks,
    )
    if "student" in networks:
        load_weights(networks["student"], run.path / "student.safetensors")
        objects["student"].eval()
    for name, network in objects.items():
        run.keep(name, network)
    return run


def distillation(
    teacher: Given,
    student: Given,
    data: Data | str,
    method: str | Stage | Sequence[Stage] = "kd",
    *,
    teacher_weights: str | Path | None = None,
    labels: int | None = None,
    alone: bool = False,
    scale: float = 1.0,
    seed: int = 0,
    data_root: str | Path | None = None,
    set: Sequence[str] | str = (),
    uses: Sequence[str] | str = (),
    trust_code: bool = False,
) -> Recipe:
    """The recipe that ``distill`` trains; the arguments are its own. Raises: FlowstillError."""
    used = (uses,) if isinstance(uses, str) else tuple(uses)
    import_used(used)
    changes = (set,) if isinstance(set, str) else tuple(set)
    if teacher is student and isinstance(teacher, nn.Module):
        raise RecipeError(
            "teacher and student are one object, which would be overwritten; give a copy.deepcopy as the student."
        )
    if isinstance(teacher, nn.Module) and teacher_weights is not None:
        raise RecipeError("teacher_weights goes with a teacher's name; a teacher given as an object has its weights.")
    its = Job(_net("teacher", teacher), weights=None if teacher_weights is None else str(teacher_weights))
    taught = Job(_net("student", student), labels=labels)
    if not (isinstance(teacher, nn.Module) or its.weights or _learned(its.network, changes)):
        raise RecipeError(
            f"The teacher {its.network.name!r} has learned nothing. Give the file of its weights, --teacher-weights FILE "
            "(teacher_weights=FILE), or for a network of timm or torchvision --set teacher.network.options.pretrained=true."
        )
    data = usual_data(data) if isinstance(data, str) else data

    def recipe(stages: tuple[Stage, ...], changes: Sequence[str]) -> Recipe:
        both = any(update.task and update.transfer for stage in stages for update in stage.updates)
        seen = replace(data, unlabelled=data.batch) if labels and both and not data.unlabelled else data
        made = replace(method_recipe(name, stages, its, taught, seen, alone_too=alone, seed=seed), uses=used)
        return load_recipe(made, set=changes, scale=scale, data_root=data_root, trust_code=trust_code)

    if not isinstance(method, str):
        name, stages = "distilled", (method,) if isinstance(method, Stage) else tuple(method)
        if not stages:
            raise RecipeError("method is an empty row of stages: give a method's name, or at least one stage.")
        return recipe(stages, changes)
    name, found = method, find_method(method)
    sections = 0
    if found.by_section:  # counted in the networks and on the images that the changes make
        others = [change for change in changes if "stages" not in change.partition("=")[0]]
        sections = _sections(recipe(found.stages(1), others), teacher, student)
    return recipe(found.stages(sections), changes)


def _net(role: str, given: Given) -> Net:
    """The network's specification. Raises: RecipeError if it is neither a network nor the name of one."""
    if isinstance(given, nn.Module):
        network = unwrapped(given)
        return Net(f"object:{type(network).__name__}", {"parameters": sum(p.numel() for p in network.parameters())})
    if isinstance(given, Net):
        return given
    if not isinstance(given, str):
        raise RecipeError(f"the {role} is a network or its name (see `flowstill list nets`), not {given!r}.")
    if Path(given).exists():
        raise RecipeError(
            f"the {role} {given!r} is a file or a folder, not a network's name. Name the network, and give the teacher's "
            "weights beside it: --teacher NET --teacher-weights FILE (teacher_weights=FILE)."
        )
    return Net(given)


def _learned(teacher: Net, changes: Sequence[str]) -> bool:
    """Whether a network that is given by its name alone, or a change to the recipe, brings weights."""
    keys = [change.partition("=")[0] for change in changes]
    brings = ("teacher.weights", "teacher.stages", "teacher.start", "teacher.network")
    return bool(teacher.options.get("pretrained")) or any(key.removeprefix("jobs.").startswith(brings) for key in keys)


def _sections(recipe: Recipe, teacher: Given, student: Given) -> int:
    """In how many sections the two networks pair."""
    if recipe.jobs["student"].flows:
        return len(recipe.jobs["student"].flows)
    facts = find_facts(recipe.data)
    networks = [
        given if isinstance(given, nn.Module) else on_meta(recipe.jobs[name], facts.shape, facts.classes)
        for name, given in (("teacher", teacher), ("student", student))
    ]
    return len(pair_sections(networks[0], networks[1], facts.shape))
