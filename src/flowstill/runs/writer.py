"""Writing a run folder."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from flowstill.errors import RunError, option
from flowstill.files import LOCK, alone_in, atomic_write, digest_of
from flowstill.runs.folder import SUMMARY, Run, is_run
from flowstill.runs.metrics import EVENTS, METRICS, MetricsLog
from flowstill.runs.recipe_file import RECIPE
from flowstill.runs.state import STATE, check_content, damage, drop_state, load_state, save_state, states_in
from flowstill.runs.summary import Summary

if TYPE_CHECKING:
    from torch import Tensor

    from flowstill.nets import Preprocessing

# What a run writes to its folder, apart from stored knowledge: the engine owns that and recreates it if it is missing.
OWN_FILES = (
    RECIPE,
    SUMMARY,
    METRICS,
    EVENTS,
    "state*.pt",
    "*.safetensors",
    "preprocessor_config.json",
    "knowledge",
    "report.html",
    ".*.partial",
    LOCK,
)
_log = logging.getLogger("flowstill")


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        done: the finished jobs.
        group: the jobs in progress, which train in lockstep.
        stage: index of the stage that they are in.
        step: updates of that stage done so far.
        failed: the finished jobs and ensembles without a result, because they or what they build on diverged.
    """

    done: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    stage: int = 0
    step: int = 0
    failed: tuple[str, ...] = ()

    @property
    def begun(self) -> tuple[str, ...]:
        """All jobs that are finished or in progress."""
        return (*self.done, *self.group)


class RunWriter:
    """The writing side of a run folder. Each file is replaced whole, so a kill at any time leaves it readable.

    A context manager: leaving it closes the metrics.

    Attributes:
        path: the folder.
        metrics: its measurements.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = MetricsLog(path)
        self._folders: list[Path] = []  # folders made for this run, the innermost first

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def create(cls, path: str | Path, *, resume: bool = False) -> RunWriter:
        """Create the folder; with ``resume``, continue a run that is in it.

        Raises:
            RunError: the folder holds a run (without ``resume``) or anything else, or cannot be written to.
        """
        path = Path(path)
        cls.refuse(path, resume=resume)
        writer = cls(path)
        try:
            writer._folders = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            writer._remove_folders()
            reason = error.strerror if isinstance(error, OSError) else error
            raise RunError(
                f"Cannot write to {str(path)!r}: {reason}. Give another folder with {option('out')}."
            ) from None
        return writer

    @contextmanager
    def alone(self) -> Iterator[Self]:
        """Lock the folder. If the block fails before anything was trained, a new run leaves nothing behind.

        Folders that were there, and a run that was continued, stay.

        Raises:
            RunError: another process trains in the folder.
        """
        try:
            with alone_in(self.path) as alone:
                if not alone:
                    raise RunError(
                        f"Another process is training in {str(self.path)!r}. Wait for it, or give another {option('out')}."
                    )
                new = not is_run(self.path)
                try:
                    yield self
                except BaseException:
                    if new and not self._trained():
                        self._clear()
                    raise
        except BaseException:
            self._remove_folders()
            raise

    def _clear(self) -> None:
        """Remove what a run writes to its folder."""
        for path in (path for name in OWN_FILES for path in self.path.glob(name)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()

    def _trained(self) -> bool:
        """Whether an update was made, or may have been."""
        try:
            return bool(self.progress().group) or any(row.step for row in Run(self.path).metrics())
        except RunError:
            return is_run(self.path)

    def _remove_folders(self) -> None:
        """Remove the folders that were made for this run, if they are empty."""
        for folder in self._folders:
            with suppress(OSError):
                folder.rmdir()

    @staticmethod
    def refuse(path: str | Path, *, resume: bool = False) -> None:
        """Check the folder's content as ``create`` does, without changing anything.

        Raises:
            RunError: the folder holds a run (without ``resume``) or anything else.
        """
        path = Path(path)
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise RunError(
                f"The name {str(path)!r} is not UTF-8, which TensorBoard's files need. Give another {option('out')}."
            ) from None
        if is_run(path):
            if not resume:
                raise RunError(
                    f"{str(path)!r} already holds a run. Continue it with {option('resume', True)}, or "
                    f"give another {option('out')}."
                )
        elif os.path.isdir(path):
            others = [p.name for p in path.iterdir() if p.name != LOCK and not p.name.endswith(".partial")]
            if lost := [name for name in (SUMMARY, METRICS, STATE) if name in others]:
                raise RunError(
                    f"{str(path / RECIPE)!r} is missing, but the folder holds a run's {lost[0]!r}. Restore it from a copy, "
                    f"or give another {option('out')}."
                )
            if others:
                raise RunError(
                    f"{str(path)!r} is neither a run folder nor empty: it holds {min(others)!r}. "
                    f"Give another {option('out')}."
                )
        elif os.path.exists(path):
            raise RunError(f"{str(path)!r} is a file; a run needs a folder. Give another {option('out')}.")

    def clear_leftovers(self) -> None:
        """Remove half-written files of a process that was killed."""
        for leftover in self.path.glob(".*.partial"):
            leftover.unlink(missing_ok=True)

    def write_recipe(self, text: str) -> None:
        """Write the resolved recipe, as YAML."""
        atomic_write(self.path / RECIPE, text.encode())

    def write_summary(self, summary: Summary) -> None:
        """Write the summary as JSON."""
        atomic_write(self.path / SUMMARY, summary.to_json().encode())

    def save_network(self, job: str, state: dict[str, Tensor], texts: dict[str, str] | None = None) -> str:
        """Write ``<job>.safetensors``: the same bytes for the same tensors and texts, without time stamps.

        Returns:
            SHA-256 of the file, in hexadecimal.
        """
        from flowstill.nets import save_weights

        path = self.path / f"{job}.safetensors"
        save_weights(state, path, texts)
        return digest_of(path)

    def write_preprocessing(self, preprocessing: Preprocessing, classes: Sequence[str]) -> None:
        """Write the student's preprocessing in Hugging Face's form, with the names of its outputs."""
        from flowstill.nets.published import CONFIG

        text = (
            json.dumps({**preprocessing.to_hugging_face(), "class_names": list(classes)}, indent=2, sort_keys=True)
            + "\n"
        )
        atomic_write(self.path / CONFIG, text.encode())

    def save_state(self, state: dict[str, Any]) -> None:
        """Write the state to resume from: tensors, numbers, strings and containers of them, nothing else."""
        save_state(self.path, {**state, "run": self._id} if self._id else state)

    @cached_property
    def _id(self) -> str | None:
        """What tells this run from others; None in runs of earlier versions."""
        facts = Run(self.path).recipe.get("run") if is_run(self.path) else None
        return str(facts["id"]) if facts and "id" in facts else None

    def load_state(self, *, lazy: bool = False) -> dict[str, Any] | None:
        """Read the last saved state that is whole, on the CPU.

        Args:
            lazy: leave its tensors on the disk until they are used.

        Returns:
            The state; None if there is none.

        Raises:
            RunError: the states are damaged, or hold something that would run code.
        """
        return load_state(self.path, lazy=lazy)

    def leave_damaged_state(self) -> None:
        """Replace a damaged state by the one saved before it, with a warning."""
        states = states_in(self.path)
        if len(states) == 2 and (reason := damage(states[0])) and not damage(states[1]):
            _log.warning(
                "%r is damaged, %s. The run continues from the state saved before it and repeats a few updates, "
                "with the same result.",
                str(states[0]),
                reason,
            )
            os.replace(states[1], states[0])

    def progress(self) -> Progress:
        """How far the run is.

        Raises:
            RunError: the state or the summary cannot be read.
        """
        state = self.load_state(lazy=True)
        if state is None:
            summary = Run.open(self.path).summary
            return Progress(tuple(summary.jobs), failed=tuple(summary.failed))
        check_content(state, self.path, self._id)
        summary = Summary.from_json(state["summary"], f"summary in {STATE}")
        step = state["loop"]["step"] if state["group"] else 0
        return Progress(tuple(summary.jobs), tuple(state["group"]), state["stage"], step, tuple(summary.failed))

    def forget(self, names: Collection[str]) -> None:
        """Take these jobs and ensembles out of the summary and the state, so that they are run again."""
        if not names:
            return
        state = self.load_state()
        if state is not None:
            summary = Summary.from_json(state["summary"], f"summary in {STATE}")
            summary.forget(names)
            self.save_state({**state, "summary": summary.to_json()})
        summary = Run.open(self.path).summary
        summary.forget(names)
        self.write_summary(summary)

    def drop_state(self) -> None:
        """Remove the state of a finished run."""
        drop_state(self.path)

    def close(self) -> None:
        """Close the metrics."""
        self.metrics.close()
