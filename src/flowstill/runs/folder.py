"""Reading a run folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flowstill.errors import NetworkError, RecipeError, RunError, did_you_mean, option
from flowstill.runs.kept import check_network, lost
from flowstill.runs.metrics import METRICS, Measurement, read_metrics
from flowstill.runs.recipe_file import RECIPE, fact, read_recipe, read_text
from flowstill.runs.state import STATE
from flowstill.runs.summary import Summary
from flowstill.schema.code import import_code

if TYPE_CHECKING:
    from torch import nn

    from flowstill.nets import Net, Preprocessing

SUMMARY = "summary.json"
T = TypeVar("T")


class Run:
    """A run folder, finished or not, as it was when it was opened.

    Attributes:
        path: the folder.
        recipe: the resolved recipe as plain data.
        summary: what is known about each job so far.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._objects: dict[str, nn.Module] = {}
        self._trusted = False

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
        return read_recipe(self.path / RECIPE)

    def fact(self, kind: type[T], *keys: str) -> T:
        """What the run noted under ``run`` in its recipe, such as ``fact(int, "data", "classes")``.

        Raises:
            RunError: it is missing, or of another type.
        """
        return fact(self.recipe, kind, *keys, path=self.path / RECIPE)

    @cached_property
    def summary(self) -> Summary:
        """What ``summary.json`` says; blank before the first one is written.

        Raises:
            RunError: the file cannot be read.
        """
        path = self.path / SUMMARY
        if not path.exists():
            return Summary()
        try:
            return Summary.from_json(read_text(path), str(path))
        except RunError as error:
            if not (self.path / STATE).exists():
                raise
            raise RunError(f"{error} Or delete it and resume: {STATE} holds the same.") from None

    def check_network(self, job: str) -> None:
        """Check that a finished job's network has not changed since it was saved; a missing file passes.

        Raises:
            RunError: its file was damaged or replaced.
        """
        path, done = self.path / f"{job}.safetensors", self.summary.jobs.get(job)
        if path.exists() and done is not None and done.sha256 is not None:
            check_network(path, done.sha256)

    @property
    def finished(self) -> bool:
        """Whether every job was trained and every ensemble measured."""
        summary, recipe = self.summary, self.recipe
        jobs, ensembles = (set(recipe.get(part) or ()) for part in ("jobs", "ensembles"))
        return summary.finished and jobs <= summary.jobs.keys() and ensembles <= summary.ensembles.keys()

    @property
    def jobs(self) -> tuple[str, ...]:
        """Names of the jobs, in the recipe's order."""
        return tuple(self.recipe["jobs"])

    def metrics(self) -> list[Measurement]:
        """All measurements in order. A last line that a kill cut off is dropped."""
        return read_metrics(self.path / METRICS)

    def network(self, job: str = "student", *, trust_code: bool = False) -> nn.Module:
        """The network that ``job`` trained, in eval mode, on the CPU; if it was given as an object, that object.

        What the recipe ``uses`` is imported only if the network is unknown without it.

        Args:
            job: the job's name.
            trust_code: allow a network from a Python file that the recipe names or ``uses``; its code runs.

        Raises:
            RunError: no such job, not trained yet, its file was damaged, or its code needs ``trust_code``.
            NetworkError: the weights do not fit the network.
        """
        import torch

        from flowstill.nets import Net, build, needs_trust

        trust_code = trust_code or self._trusted
        if job in self._objects:
            return self._objects[job]
        if job not in self.jobs:
            raise RunError(f"{str(self.path)!r} has no job {job!r}. {did_you_mean(job, self.jobs)}")
        weights = self.path / f"{job}.safetensors"
        if why := self.summary.failed.get(job):
            raise RunError(
                f"Job {job!r} has no network: {why}. Change its recipe, for example to a lower learning rate, "
                f"and train it again with {option('resume', True)}."
            )
        if not weights.exists() and job in self.summary.jobs:
            raise RunError(lost(self.path, job))
        if not weights.exists():
            raise RunError(
                f"Job {job!r} has no network yet: no file {str(weights)!r}. Finish the run with {option('resume', True)}."
            )
        self.check_network(job)
        classes, channels = self.fact(int, "data", "classes"), self.fact(int, "data", "channels")
        try:
            spec = Net(**self.recipe["jobs"][job]["network"])
        except TypeError as error:
            raise RunError(f"{str(self.path / RECIPE)!r}: {error}. It was edited by hand; restore it.") from None
        if needs_trust(spec.name) and not trust_code:
            raise RunError(f"Building {spec.name!r} runs a Python file; allow that with {option('trust_code', True)}.")
        if not needs_trust(spec.name):
            self._import_used(spec, trust_code)
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then replaced
            return build(spec, num_classes=classes, in_channels=channels, weights=weights).eval()

    def _import_used(self, spec: Net, trust_code: bool) -> None:
        """Import what the recipe ``uses`` if the network is unknown without it.

        Raises:
            RunError: an import is not allowed, or fails.
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

    def preprocessing(self, job: str = "student") -> Preprocessing:
        """How images become the input of ``job``'s network.

        Args:
            job: the job's name.

        Raises:
            RunError: there is no such job, or the run does not record it.
        """
        from flowstill.nets import Preprocessing
        from flowstill.schema.dataclass import validated

        if job not in self.jobs:
            raise RunError(f"{str(self.path)!r} has no job {job!r}. {did_you_mean(job, self.jobs)}")
        try:
            facts = self.recipe["run"]["preprocessing"][job]
            return validated(Preprocessing, {key: value for key, value in facts.items() if key != "output"})
        except (KeyError, TypeError, AttributeError, RecipeError):
            raise RunError(
                f"{str(self.path / RECIPE)!r} does not say how images become the input of {job!r}: it was written by an "
                "earlier version, or edited by hand. Train again, or normalise as for training (data.mean, data.std)."
            ) from None

    def trust(self) -> None:
        """Let ``network`` run the recipe's Python files without asking, since the caller named them."""
        self._trusted = True

    def keep(self, job: str, network: nn.Module) -> None:
        """Let ``network(job)`` return this object, which already holds the job's weights."""
        self._objects[job] = network

    @property
    def student(self) -> nn.Module:
        """The distilled network, ready to use: ``network("student")``."""
        return self.network("student")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


def student_of(jobs: Iterable[str]) -> str:
    """The job whose network a run is about: ``student``, or the last one.

    >>> student_of(["teacher", "student", "student_alone"]), student_of(["teacher", "small"])
    ('student', 'small')
    """
    names = list(jobs)
    return "student" if "student" in names else names[-1]


def folder_of(name: str) -> Path:
    """The default run folder of a recipe: ``runs/NAME``.

    Raises:
        RunError: the name is a path, so the folder could lie anywhere.

    Example:
        >>> folder_of("digits").as_posix()
        'runs/digits'
    """
    if name in ("", ".", "..") or any(character in name for character in "/\\:\0") or len(name.encode()) > 200:
        shown = name if len(name) <= 60 else f"{name[:57]}..."
        raise RunError(f"The recipe's name {shown!r} is not the name of a folder. Change it, or give {option('out')}.")
    return Path("runs", name)


def is_run(path: str | Path) -> bool:
    """Whether ``path`` is a run folder."""
    return os.path.isfile(Path(path) / RECIPE)  # pathlib raises if a name is too long


def _nearest_run(path: Path) -> str:
    """A sentence that offers the runs inside ``path``, or the nearest one beside it."""
    inside = [p.name for p in sorted(path.iterdir()) if is_run(p)] if path.is_dir() else []
    if inside:
        return f"It contains the runs {', '.join(repr(str(path / name)) for name in inside[:5])}."
    beside = [str(p) for p in sorted(path.parent.iterdir()) if is_run(p)] if path.parent.is_dir() else []
    return did_you_mean(str(path), beside) if beside else "Create one with `flowstill train RECIPE --out FOLDER`."
