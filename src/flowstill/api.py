"""The front door: distil a network, train a recipe, evaluate a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from flowstill.data import Data
from flowstill.engine import evaluate, train
from flowstill.engine.context import OnStep
from flowstill.engine.precision import Asked
from flowstill.errors import RunError, option
from flowstill.features.modules import unwrapped
from flowstill.nets import load_weights
from flowstill.recipes.distillation import Given, distillation
from flowstill.recipes.recipe import Stage
from flowstill.runs import Run, is_run

__all__ = ["distill", "evaluate", "train"]


def distill(
    teacher: Given,
    student: Given,
    data: Data | str | os.PathLike[str],
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
    uses: Sequence[str | Path] | str | Path = (),
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    precision: Asked = "auto",
    progress: bool | None = None,
    on_step: OnStep | None = None,
) -> Run:
    """Train ``student`` with the help of ``teacher``, and keep everything in a run folder.

    Args:
        teacher: a network, or a name as ``create`` takes it: a function in a Python file too, which is run. An object is
            not changed.
        student: likewise. An object starts from its current weights, is not changed during training, and holds the
            trained weights afterwards, in eval mode on its own device.
        data: a name or a folder, with the augmentation that is usual for it, or a ``Data``.
        method: a name (``flowstill list methods``), or stages as the procedures make them (``fs.joint``, ...). Soft
            logits, the default, work with any two networks of the same classes, and were best, or level with the best,
            in most trials; docs/results says which to choose when.
        out: the run's folder, ``runs/METHOD`` by default.
        teacher_weights: a file with the weights of a teacher given by name.
        labels: number of labelled images for the task. The transfer uses all images: where an update has both, as many
            unlabelled images join its batch, unless ``data`` says how many.
        alone: also train the student's network alone, for as many updates, to compare.
        scale: stretches all schedules; 1 is the papers' budget for CIFAR-10, 85 000 updates of 256 images with FSP.
        seed: of everything random.
        data_root: the folder that holds data sets.
        set: changes of single values, such as ``student.stages.transfer.lr=0.01``.
        uses: installed modules and Python files to import first, such as one that registers the method.
        resume: as in ``train``; likewise ``device``, ``devices``, ``precision``, ``progress`` and ``on_step``.

    Returns:
        The finished run; ``run.student`` is the student's network, the object itself if one was given.

    Raises:
        FlowstillError: bad input.
        KeyboardInterrupt: interrupted; the state is saved.
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
    )
    folder = Path(out or Path("runs", recipe.name))
    objects = {name: net for name, net in (("teacher", teacher), ("student", student)) if isinstance(net, nn.Module)}
    networks = {name: unwrapped(network) for name, network in objects.items()}
    if alone and "student" in networks:
        networks["student_alone"] = networks["student"]
        if resume and is_run(folder) and "student_alone" not in Run.open(folder).jobs:
            raise RunError(
                f"{str(folder)!r} was started without {option('alone', True)}, and the student object may hold what it "
                f"learned there. Give another {option('out')}, and an object with fresh weights."
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
