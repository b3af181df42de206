"""Writing a run folder."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from flowstill.errors import RunError, option
from flowstill.files import LOCK, atomic_write
from flowstill.runs.folder import RECIPE, SUMMARY, Run, is_run
from flowstill.runs.metrics import MetricsLog
from flowstill.runs.summary import Summary

if TYPE_CHECKING:
    from torch import Tensor

STATE = "state.pt"


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        done: the finished jobs.
        group: the jobs in progress, which train in lockstep.
        stage: index of the stage that they are in.
    """

    done: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    stage: int = 0

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def create(cls, path: str | Path, *, resume: bool = False) -> RunWriter:
        """Create the folder; with ``resume``, a run in it is continued.

        Raises:
            RunError: the folder holds a run (without ``resume``) or anything else, or cannot be written to.
        """
        path = Path(path)
        cls.refuse(path, resume=resume)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"Cannot write to {str(path)!r}: {error.strerror}. Give another folder with {option('out')}."
            ) from None
        return cls(path)

    @staticmethod
    def refuse(path: str | Path, *, resume: bool = False) -> None:
        """Check the folder's content as ``create`` does, without changing anything.

        Raises:
            RunError: the folder holds a run (without ``resume``) or anything else.
        """
        path = Path(path)
        if is_run(path):
            if not resume:
                raise RunError(
                    f"{str(path)!r} holds a run already. Continue it with {option('resume', True)}, or give another "
                    f"{option('out')}."
                )
        elif path.is_dir():
            others = [p.name for p in path.iterdir() if p.name != LOCK and not p.name.endswith(".partial")]
            if others:
                raise RunError(
                    f"{str(path)!r} is neither a run folder nor empty: it holds {min(others)!r}. "
                    f"Give another {option('out')}."
                )
        elif path.exists():
            raise RunError(f"{str(path)!r} is a file; a run needs a folder. Give another {option('out')}.")

    def clear_leftovers(self) -> None:
        """Remove half-written files of a process that was killed."""
        for leftover in self.path.glob(".*.partial"):
            leftover.unlink(missing_ok=True)

    def write_recipe(self, text: str) -> None:
        """Write the resolved recipe, as YAML."""
        atomic_write(self.path / RECIPE, text.encode())

    def write_summary(self, summary: Summary) -> None:
        """Write what is known so far, as JSON."""
        atomic_write(self.path / SUMMARY, summary.to_json().encode())

    def save_network(self, job: str, state: dict[str, Tensor]) -> None:
        """Write ``<job>.safetensors``: the same bytes for the same tensors, without time stamps."""
        from flowstill.nets import save_weights

        save_weights(state, self.path / f"{job}.safetensors")

    def save_state(self, state: dict[str, Any]) -> None:
        """Write the state to resume from: tensors, numbers, strings and containers of them, nothing else."""
        import torch

        atomic_write(self.path / STATE, lambda partial: torch.save(state, partial))

    def load_state(self, *, lazy: bool = False) -> dict[str, Any] | None:
        """Read the last saved state, on the CPU.

        Args:
            lazy: leave its tensors on the disk until they are used.

        Returns:
            The state; None if there is none.

        Raises:
            RunError: the file is damaged, or holds something that would run code.
        """
        import torch

        path = self.path / STATE
        if not path.exists():
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of odd pickles before it refuses them
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)
        except Exception as error:  # a broken file can raise anything; none of it runs code
            reason = str(error).strip().split("\n")[0][:200]
            raise RunError(
                f"Cannot resume from {str(path)!r}: it is damaged, or holds more than plain tensors ({reason}). "
                "Delete the folder and start over."
            ) from None
        if not isinstance(state, dict):
            raise RunError(
                f"Cannot resume from {str(path)!r}: expected a dict. Received: {type(state).__name__}. "
                "Delete the folder and start over."
            )
        return state

    def progress(self) -> Progress:
        """How far the run is.

        Raises:
            RunError: the state or the summary cannot be read.
        """
        state = self.load_state(lazy=True)
        if state is not None:
            summary = Summary.from_json(state["summary"], f"summary in {STATE}")
            return Progress(tuple(summary.jobs), tuple(state["group"]), state["stage"])
        summary = Run.open(self.path).summary
        return Progress(tuple(summary.jobs) if summary.finished else ())

    def drop_state(self) -> None:
        """Remove the state of a finished run."""
        (self.path / STATE).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the metrics."""
        self.metrics.close()
