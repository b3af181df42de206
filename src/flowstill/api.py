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
from flowstill.errors import DivergedError, RunError, option, warnings_are_errors
from flowstill.features.modules import unwrapped
from flowstill.nets import Preprocessing, load_weights
from flowstill.nets.published import note_preprocessing
from flowstill.recipes.distillation import Given, distillation
from flowstill.recipes.recipe import Stage
from flowstill.runs import Run, folder_of, is_run
from flowstill.runs.folder import student_of

__all__ = ["distill", "evaluate", "load_student", "train"]


def distill(
    teacher: Given,
    student: Given,
    data: Data | str | os.PathLike[str],
    method: str | Stage | Sequence[Stage] = "kd",
    *,
    out: str | Path | None = None,
    teacher_weights: str | Path | None = None,
    teacher_is_trained: bool = False,
    labels: int | None = None,
    alone: bool = False,
    scale: float = 1.0,
    seed: int = 0,
    data_root: str | Path | None = None,
    set: Sequence[str] | str = (),
    uses: Sequence[str | Path] | str | Path = (),
    trust_code: bool = False,
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    precision: Asked = "auto",
    progress: bool | None = None,
    on_step: OnStep | None = None,
    strict: bool = False,
) -> Run:
    """Train ``student`` with the help of ``teacher``, and keep everything in a run folder.

    Args:
        teacher: a network, or a name as ``create`` takes it: a function in a Python file too, which is run. An object is
            not changed, but lazy layers get their sizes. Its logits are the one tensor of shape (images, classes) that it
            returns, or the one called ``logits``. TorchScript, exported and quantised modules can teach by knowledge that
            reads logits only, such as ``kd``.
        student: likewise. An object starts from its current weights, is not changed during training, and holds the
            trained weights afterwards, in eval mode on its own device.
        data: a name or a folder, with the augmentation that is usual for it, or a ``Data``.
        method: a name (``flowstill list methods``), or stages as the procedures make them (``fs.joint``, ...). Soft
            logits, the default, work with any two networks of the same classes, and were best, or level with the best,
            in most trials; docs/results says which to choose when.
        out: the run's folder, ``runs/METHOD`` by default.
        teacher_weights: a file with the weights of a teacher given by name, or ``FILE#KEY`` for one network of several.
        teacher_is_trained: a teacher given by name is built with trained weights, such as by your own function.
        labels: number of labelled images for the task. The transfer uses all images: where an update has both, as many
            unlabelled images join its batch, unless ``data`` says how many.
        alone: also train the student's network alone, for as many updates, to compare.
        scale: stretches all schedules; 1 is the papers' budget for CIFAR-10, 85 000 updates of 256 images with FSP.
        seed: of everything random.
        data_root: the folder that holds data sets.
        set: changes of single values, such as ``student.stages.transfer.lr=0.01``.
        uses: installed modules and Python files to import first, such as one that registers the method.
        trust_code: changes nothing here, where all files are named by the caller; ``train`` takes it too.
        resume: as in ``train``; likewise ``device``, ``devices``, ``precision``, ``progress``, ``on_step`` and ``strict``.

    Returns:
        The finished run; ``run.student`` is the student's network, the object itself if one was given.

    Raises:
        DivergedError: the student's losses or weights are not finite, or its teacher's; raised once all else is trained
            and saved. A student given as an object keeps the weights that it had.
        FlowstillError: bad input.
        KeyboardInterrupt: interrupted; the state is saved.
    """
    with warnings_are_errors(strict):
        recipe = distillation(
            teacher,
            student,
            data,
            method,
            teacher_weights=teacher_weights,
            teacher_is_trained=teacher_is_trained,
            labels=labels,
            alone=alone,
            scale=scale,
            seed=seed,
            data_root=data_root,
            set=set,
            uses=uses,
        )
    folder = Path(out or folder_of(recipe.name))
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
        strict=strict,
    )
    if why := run.summary.failed.get("student"):
        raise DivergedError(f"The student has no network: {why}. The run is in {str(folder)!r}.")
    if "student" in networks:
        load_weights(networks["student"], run.path / "student.safetensors")
        objects["student"].eval()
        note_preprocessing(networks["student"], run.preprocessing("student"))
    run.trust()  # the caller has named all its files
    for name, network in objects.items():
        run.keep(name, network)
    return run


def load_student(
    run: Run | str | Path, job: str | None = None, *, trust_code: bool = False
) -> tuple[nn.Module, Preprocessing]:
    """A run's student, ready for photographs: ``network(preprocess("photo.jpg"))`` gives its logits.

    Args:
        run: the run, or its folder.
        job: name of another job; None for ``student``, or the run's last job if there is none of that name.
        trust_code: allow a network from a Python file; its code runs.

    Returns:
        The network, in eval mode on the CPU, and its preprocessing, which takes paths, Pillow images and arrays.

    Raises:
        RunError: not a run, no such job, or it is not trained yet.

    Example:
        ```python
        network, preprocess = fs.load_student("runs/kd")
        logits = network(preprocess(["one.jpg", "two.jpg"]))  # (2, classes)
        ```
    """
    run = run if isinstance(run, Run) else Run.open(run)
    name = job or student_of(run.jobs)
    return run.network(name, trust_code=trust_code), run.preprocessing(name)
