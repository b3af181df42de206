"""Runs to compare: interrupted and resumed, by one process and by two."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import flowstill as fs
from flowstill.recipes.recipe import Recipe

PLAIN: dict[str, Any] = {"device": "cpu", "precision": "32", "progress": False}
Where = tuple[str, str, int]  # a job, its stage, and how many steps of it are done


def weights(run: fs.Run, job: str = "student") -> dict[str, Tensor]:
    """What the run has saved of this job's network."""
    return load_file(run.path / f"{job}.safetensors")


def rows(run: fs.Run) -> list[list[str]]:
    """What the run has measured, but for its speed."""
    with open(run.path / "metrics.csv", newline="") as file:
        return [row for row in list(csv.reader(file))[1:] if row[3] != "images_per_second"]


def stop_at(where: Where) -> Callable[[str, str, int], None]:
    """An ``on_step`` that interrupts as Ctrl-C does."""

    def interrupt(*here: Any) -> None:
        if here == where:
            signal.raise_signal(signal.SIGINT)

    return interrupt


def resumed(given: Recipe, path: Path, where: Where) -> fs.Run:
    """A run that is interrupted within a stage and resumed, without repeating or skipping a step."""
    with pytest.raises(KeyboardInterrupt):
        fs.train(given, path, on_step=stop_at(where), **PLAIN)
    seen: list[Where] = []
    run = fs.train(given, path, resume=True, on_step=lambda *here: seen.append(here), **PLAIN)
    job, stage, steps = where
    assert seen[0] == (job, stage, steps + 1)
    return run


def assert_same(run: fs.Run, other: fs.Run) -> None:
    """All jobs' weights are the same bit for bit, and all that was measured but the speed."""
    assert run.jobs == other.jobs
    for job in run.jobs:
        mine, its = ((each.path / f"{job}.safetensors").read_bytes() for each in (run, other))
        assert mine == its, f"the weights of {job!r} differ"
    assert rows(run) == rows(other)


def assert_near(run: fs.Run, other: fs.Run, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """All jobs' weights agree but for rounding."""
    assert run.jobs == other.jobs
    for job in run.jobs:
        torch.testing.assert_close(weights(run, job), weights(other, job), rtol=rtol, atol=atol)
