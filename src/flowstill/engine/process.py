"""One process's part in a run, and how several processes are started."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric

from flowstill.data import open_data
from flowstill.engine.context import Context, Work
from flowstill.engine.facts import new_summary
from flowstill.engine.hardware import make_fabric
from flowstill.engine.progress import Progress
from flowstill.engine.session import Session
from flowstill.engine.spawned import Failures
from flowstill.runs import Run, RunWriter
from flowstill.schema.code import import_used

if TYPE_CHECKING:
    from flowstill.data import ImageData


def run_work(work: Work, out: Path, device: str, devices: int, progress: bool | None, data: ImageData) -> None:
    """Do the work in this process, or in ``devices`` processes that are spawned for it.

    Args:
        out: the run's folder.
        data: the images, for this process; spawned ones open them again.

    Raises:
        ChildProcessError: a spawned process ended without a word. What one raises is raised here too.
    """
    fabric = make_fabric(device, devices, work.precision)
    if devices == 1:
        do_part(fabric, work, out, progress, data)
    else:
        failures = Failures()
        # As a partial: Fabric walks through arguments, and stops at frozen dataclasses.
        part = partial(_do_spawned_part, UsedCode(work.recipe.uses), failures, work=work, out=out, progress=progress)
        with failures.outside():
            fabric.launch(part)


class UsedCode:
    """What a recipe uses, imported wherever this is made or unpickled.

    As the first argument of a spawned process it is unpickled before the recipe, whose classes are defined there.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        import_used(names)

    def __reduce__(self) -> tuple[type[UsedCode], tuple[tuple[str, ...]]]:
        return UsedCode, (self.names,)


def _do_spawned_part(used: UsedCode, failures: Failures, fabric: Fabric, **arguments: Any) -> None:
    """A spawned process's part, after importing what the recipe uses."""
    _end_with_parent()
    with failures.inside():
        do_part(fabric, **arguments)


def _end_with_parent() -> None:
    """End this spawned process at once when its parent, which holds the run's lock, is gone."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def do_part(fabric: Fabric, work: Work, out: Path, progress: bool | None, data: ImageData | None = None) -> None:
    """One process's part.

    Args:
        data: None to open it here.
    """
    recipe = work.recipe
    data = data or open_data(recipe.data, seed=recipe.seed)
    summary = new_summary(recipe, work.precision, fabric)
    past = Run.open(out).summary
    summary.jobs, summary.ensembles, summary.kept = past.jobs, past.ensembles, past.kept
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    # The seeds set along the way must not leak out.
    shows = progress if fabric.global_rank == 0 else False
    with torch.random.fork_rng(devices=devices), Progress(shows) as shown, RunWriter(out) as writer:
        Session(Context(fabric, work, data, writer, shown), summary).run()
    if fabric.world_size > 1:  # its threads, left running, can abort a process that is done
        fabric.barrier()
        torch.distributed.destroy_process_group()
