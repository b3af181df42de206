"""Reading a run folder."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flowstill.errors import NetworkError, RecipeError, RunError, did_you_mean, option
from flowstill.runs.metrics import METRICS, Measurement, read_metrics
from flowstill.runs.summary import Summary
from flowstill.schema.code import import_code

if TYPE_CHECKING:
    from torch import nn

    from flowstill.nets import Net

RECIPE, SUMMARY = "recipe.yaml", "summary.json"


class Run:
    """A run folder, finished or not, with the content it had when it was opened.

    Attributes:
        path: the folder.
        recipe: the resolved recipe as plain data.
        summary: what is known of each job so far.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._objects: dict[str, nn.Module] = {}

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open the run in folder ``path``.

        Raises:
            RunError: not a run folder; the text names what is missing and the nearest run folder.
        """
        path = Path(path)
        if is_run(path):
            return cls(path)
        if not path.exists():
            reason = "the folder does not exist"
        elif not path.is_dir():
            reason = "it is a file, not a folder"
        else:
            reason = f"it has no {RECIPE}"
        raise RunError(f"{str(path)!r} is not a run folder: {reason}. {_nearest_run(path)}".rstrip())

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe.

        Raises:
            RunError: the file cannot be read.
        """
        try:
            value = yaml.safe_load(self._text(RECIPE))
        except yaml.YAMLError as error:
            raise RunError(f"{str(self.path / RECIPE)!r} cannot be read: {error}") from None
        if not isinstance(value, dict):
            raise RunError(
                f"{str(self.path / RECIPE)!r}: expected a mapping. Received: {type(value).__name__}. "
                "It was edited by hand; restore it."
            )
        return value

    @cached_property
    def summary(self) -> Summary:
        """What ``summary.json`` says; blank before the first one is written.

        Raises:
            RunError: the file cannot be read.
        """
        path = self.path / SUMMARY
        return Summary.from_json(self._text(SUMMARY), str(path)) if path.exists() else Summary()

    def _text(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{str(self.path / name)!r} cannot be read: {error}") from None

    @property
    def finished(self) -> bool:
        """Whether every job was trained and every ensemble measured."""
        summary, recipe = self.summary, self.recipe
        jobs, ensembles = (set(recipe.get(part) or ()) for part in ("jobs", "ensembles"))
        return summary.finished and jobs <= summary.jobs.keys() and ensembles <= summary.ensembles.keys()

    @property
    def jobs(self) -> tuple[str, ...]:
        """Names of the jobs, in the recipe's order."""
        return tuple(self.recipe.get("jobs", {}))

    def metrics(self) -> list[Measurement]:
        """All measurements in the order in which they were made. A last line that a kill cut off is dropped."""
        return read_metrics(self.path / METRICS)

    def network(self, job: str = "student", *, trust_code: bool = False) -> nn.Module:
        """The network that ``job`` trained, in eval mode, on the CPU; if it was given as an object, that object.

        What the recipe ``uses`` is imported only for a network that is not known without it.

        Args:
            job: the job's name.
            trust_code: allow a network from a Python file that the recipe names or ``uses``; its code runs.

        Raises:
            RunError: there is no such job, it is not trained yet, or it needs a file and ``trust_code`` is not given.
            NetworkError: the weights do not fit the network.
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
                f"Job {job!r} has no network yet: no file {str(weights)!r}. Finish the run with {option('resume', True)}."
            )
        try:
            spec, data = Net(**self.recipe["jobs"][job]["network"]), self.recipe["run"]["data"]
            classes, channels = data["classes"], data["channels"]
        except (KeyError, TypeError) as error:
            raise RunError(
                f"{str(self.path / RECIPE)!r}: {error} is missing or wrong. It was edited by hand; restore it."
            ) from None
        if needs_trust(spec.name) and not trust_code:
            raise RunError(f"Building {spec.name!r} runs a Python file; allow that with {option('trust_code', True)}.")
        if not needs_trust(spec.name):
            self._import_used(spec, trust_code)
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then replaced
            return build(spec, num_classes=classes, in_channels=channels, weights=weights).eval()

    def _import_used(self, spec: Net, trust_code: bool) -> None:
        """Import what the recipe ``uses`` if the network has no meaning without it.

        Raises:
            RunError: one of them may not be imported, or cannot be.
        """
        import torch

        from flowstill.nets import build

        used = self.recipe.get("uses") or ()
        if not used:
            return
        try:
            with torch.device("meta"):
                build(spec)
        except NetworkError:
            try:
                for name in used:
                    import_code(name, trust_code=trust_code)
            except RecipeError as error:
                raise RunError(f"{str(self.path / RECIPE)!r} uses code to build {spec.name!r}: {error}") from error

    def keep(self, job: str, network: nn.Module) -> None:
        """Let ``network(job)`` return this very object, which holds the job's weights already."""
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
    """A sentence that offers the runs inside ``path``, or the nearest one beside it."""
    inside = [p.name for p in sorted(path.iterdir()) if is_run(p)] if path.is_dir() else []
    if inside:
        return f"It contains the runs {', '.join(repr(str(path / name)) for name in inside[:5])}."
    beside = [str(p) for p in sorted(path.parent.iterdir()) if is_run(p)] if path.parent.is_dir() else []
    return did_you_mean(str(path), beside) if beside else "Create one with `flowstill train RECIPE --out FOLDER`."
