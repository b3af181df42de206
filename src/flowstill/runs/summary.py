"""The summary of a run: ``summary.json`` as one dataclass, written and read here and nowhere else."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from flowstill.errors import RunError


class _Record(Mapping[str, Any]):
    """A dataclass that can also be read by key, as the JSON file is: ``summary["jobs"]["student"]["accuracy"]``.

    Fields named in ``optional`` have no key, and no entry in the file, while they are None.
    """

    optional: ClassVar[frozenset[str]] = frozenset()

    def __getitem__(self, name: str) -> Any:
        if name not in set(self):
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        for one in dataclasses.fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            if one.name not in self.optional or getattr(self, one.name) is not None:
                yield one.name

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(eq=False)
class Scores(_Record):
    """What was measured on the test images; None before that, and for a network with classes other than the data's.

    Attributes:
        accuracy: top-1, in percent.
        loss: mean cross-entropy.
        top5: in percent; None for 5 classes or fewer.
        not_run: why it was neither trained nor measured: a job that it builds on diverged.
    """

    optional: ClassVar[frozenset[str]] = frozenset(
        {"accuracy", "loss", "top5", "paper", "sha256", "not_run", "diverged"}
    )

    accuracy: float | None = None
    loss: float | None = None
    top5: float | None = None
    not_run: str | None = None

    @property
    def missing(self) -> str:
        """Why there is no accuracy, in a word or two: ``diverged``, ``not run``, or empty."""
        return "not run" if self.not_run else ""

    @property
    def reason(self) -> str:
        """Why there is no accuracy, in full; empty if nothing went wrong."""
        return self.not_run or ""


@dataclass(eq=False)
class JobSummary(Scores):
    """One finished job.

    Attributes:
        network: name of the network.
        about: the recipe's sentence about the job.
        labels: number of labelled images that the task used; None for all.
        parameters: of the network.
        macs: multiply-accumulates for one image.
        steps: updates over all stages; 0 if the weights were given.
        seconds: training time.
        teacher: name of the job that taught it.
        paper: the accuracy that the paper prints, in percent.
        diverged: stage, update and losses or weights, if these were not finite; the job then has no network.
        sha256: of the network's file, in hexadecimal; None in runs of earlier versions.
    """

    network: str = ""
    about: str = ""
    labels: int | None = None
    parameters: int | None = None
    macs: int | None = None
    steps: int | None = None
    seconds: float | None = None
    teacher: str | None = None
    paper: float | None = None
    diverged: str | None = None
    sha256: str | None = None

    @property
    def missing(self) -> str:
        """Why there is no network, in a word or two: ``diverged``, ``not run``, or empty."""
        return "diverged" if self.diverged else super().missing

    @property
    def reason(self) -> str:
        """Why there is no network, in full; empty if nothing went wrong."""
        return self.diverged or super().reason


@dataclass(eq=False)
class Summary(_Record):
    """What is known about a run so far.

    Attributes:
        recipe: name of the recipe.
        finished: whether every job and ensemble of the recipe is done.
        seed: of the recipe.
        device: ``cpu``, ``cuda`` or ``mps``.
        devices: number of processes that share each batch.
        precision: ``dtype`` (``32``, ``bf16``) and ``layout`` (``contiguous``, ``channels_last``).
        versions: package -> version.
        jobs: the finished jobs by name.
        ensembles: scores of the measured ensembles by name.
        kept: SHA-256 of the networks kept between two stages for other jobs, by the file's name, ``JOB@STAGE``.
        command: the command line; empty if the run was started from Python.
    """

    recipe: str = ""
    finished: bool = False
    seed: int | None = None
    device: str = ""
    devices: int = 1
    precision: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, JobSummary] = field(default_factory=dict)
    ensembles: dict[str, Scores] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    command: str = ""

    @property
    def failed(self) -> dict[str, str]:
        """The jobs and ensembles that diverged or build on one that did -> why."""
        return {name: row.reason for name, row in {**self.ensembles, **self.jobs}.items() if row.missing}

    def forget(self, names: Iterable[str]) -> None:
        """Remove these jobs and ensembles if they have no result, as if they had never been run."""
        for name in names:
            for rows in (self.jobs, self.ensembles):
                if name in rows and rows[name].missing:
                    del rows[name]

    def to_json(self) -> str:
        """The text of ``summary.json``."""
        return json.dumps(self, indent=2, sort_keys=True, default=dict) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "summary.json") -> Self:
        """Read what ``to_json`` wrote; unknown keys, from other versions of flowstill, are ignored.

        Args:
            text: the file's content.
            source: its name, for messages.

        Raises:
            RunError: not JSON, or not a summary.

        Example:
            >>> Summary.from_json('{"jobs": {"student": {"accuracy": 91.5}}}').jobs["student"].accuracy
            91.5
        """
        from pydantic import ValidationError  # slow to import

        try:
            summary: Self = _adapter(cls).validate_python(json.loads(text))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise RunError(
                f"{source!r} cannot be read: {where}: {first['msg']}. Received: {first['input']!r}. "
                "It was edited by hand; restore it."
            ) from None
        except (ValueError, RecursionError) as error:  # no JSON
            raise RunError(f"{source!r} cannot be read: {error}. Restore it from a copy.") from None
        for name, row in {**summary.ensembles, **summary.jobs}.items():
            if row.accuracy is not None and not math.isfinite(row.accuracy):
                raise RunError(
                    f"{source!r} cannot be read: the accuracy of {name!r}: expected a number. "
                    f"Received: {row.accuracy}. It was edited by hand; restore it."
                )
        return summary


@functools.cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
