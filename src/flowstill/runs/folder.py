"""Reading a run folder."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flowstill.errors import RunError, did_you_mean
from flowstill.runs.metrics import METRICS, Measurement, read_metrics

if TYPE_CHECKING:
    from torch import nn

RECIPE, SUMMARY = "recipe.yaml", "summary.json"


class Run:
    """A run folder, finished or not, as it is on the disk when it is opened.

    recipe: the resolved recipe as plain data. summary: what is known of each job so far.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._objects: dict[str, nn.Module] = {}

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run in folder ``path``. Raises: RunError naming what is missing and the nearest run folder."""
        path = Path(path)
        if is_run(path):
            return cls(path)
        if not path.exists():
            missing = "there is no such folder"
        elif not path.is_dir():
            missing = "it is a file, not a folder"
        else:
            missing = f"it has no {RECIPE}"
        raise RunError(f"{str(path)!r} is no run folder: {missing}. {_nearest_run(path)}".rstrip())

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe. Raises: RunError if it cannot be read."""
        return self._mapping(RECIPE, yaml.safe_load, yaml.YAMLError)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` says; empty before the first is written. Raises: RunError if it cannot be read."""
        if not (self.path / SUMMARY).exists():
            return {}
        return self._mapping(SUMMARY, json.loads, json.JSONDecodeError)

    def _mapping(self, name: str, parse: Any, broken: type[Exception]) -> dict[str, Any]:
        try:
            value = parse((self.path / name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, broken) as error:
            raise RunError(f"{str(self.path / name)!r} cannot be read: {error}") from None
        if not isinstance(value, dict):
            raise RunError(
                f"{str(self.path / name)!r} holds {type(value).__name__}, not a mapping; it was changed by hand."
            )
        return value

    @property
    def finished(self) -> bool:
        """Whether every job ran to its end and every ensemble was measured."""
        done = (set(self.recipe.get(part) or ()) <= set(self.summary.get(part, ())) for part in ("jobs", "ensembles"))
        return bool(self.summary.get("finished")) and all(done)

    @property
    def jobs(self) -> tuple[str, ...]:
        """The jobs' names, in the recipe's order."""
        return tuple(self.recipe.get("jobs", {}))

    def metrics(self) -> list[Measurement]:
        """All measurements in the order in which they were made. A last line cut off by a kill is left out."""
        return read_metrics(self.path / METRICS)

    def network(self, job: str = "student", *, trust_code: bool = False) -> nn.Module:
        """The network that ``job`` trained, in eval mode, on the CPU; where one was given as an object, that object.

        trust_code: allow a network that the recipe takes from a Python file; building it runs that file.
        Raises: RunError if there is no such job or it is not trained yet; NetworkError if file and network differ.
        """
        import torch

        from flowstill.nets import Net, build, needs_trust

        if job in self._objects:
            return self._objects[job]
        if job not in self.jobs:
            raise RunError(f"{str(self.path)!r} has no job {job!r}. {did_you_mean(job, self.jobs)}")
        weights = self.path / f"{job}.safetensors"
        if not weights.is_file():
            raise RunError(
                f"Job {job!r} has no network yet: there is no {str(weights)!r}. Finish the run with --resume."
            )
        try:
            spec, data = Net(**self.recipe["jobs"][job]["network"]), self.recipe["run"]["data"]
            classes, channels = data["classes"], data["channels"]
        except (KeyError, TypeError) as error:
            raise RunError(f"{str(self.path / RECIPE)!r} was changed by hand: {error} is missing or wrong.") from None
        if needs_trust(spec.name) and not trust_code:
            raise RunError(
                f"Building {spec.name!r} runs a Python file; allow that with --trust-code (trust_code=True)."
            )
        with torch.random.fork_rng(devices=[]):  # the fresh weights, soon replaced, are drawn from it
            return build(spec, num_classes=classes, in_channels=channels, weights=weights).eval()

    def keep(self, job: str, network: nn.Module) -> None:
        """Let ``network(job)`` give this very object, which holds the job's weights already."""
        self._objects[job] = network

    @property
    def student(self) -> nn.Module:
        """The distilled network, ready to use: ``network("student")``."""
        return self.network("student")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


def is_run(path: str | Path) -> bool:
    """Whether ``path`` is a run folder."""
    return (Path(path) / RECIPE).is_file()


def _nearest_run(path: Path) -> str:
    """A sentence that offers the runs inside ``path``, or those beside it."""
    inside = [p.name for p in sorted(path.iterdir()) if is_run(p)] if path.is_dir() else []
    if inside:
        return f"It holds the runs {', '.join(repr(str(path / name)) for name in inside[:5])}."
    beside = [str(p) for p in sorted(path.parent.iterdir()) if is_run(p)] if path.parent.is_dir() else []
    return did_you_mean(str(path), beside) if beside else "`flowstill train RECIPE --out FOLDER` makes one."
