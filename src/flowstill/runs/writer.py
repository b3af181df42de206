"""Writing a run folder: each file is replaced whole, so that a kill at any time leaves it readable."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowstill.errors import RunError
from flowstill.files import atomic_write
from flowstill.runs.folder import RECIPE, SUMMARY, Run, is_run
from flowstill.runs.metrics import MetricsLog

if TYPE_CHECKING:
    from torch import Tensor

STATE = "state.pt"


@dataclass(frozen=True)
class Progress:
    """The jobs that are done; those of which a part is, which go in lockstep, and the number of the stage they are in."""

    done: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    stage: int = 0

    @property
    def begun(self) -> tuple[str, ...]:
        """All jobs that something was done for."""
        return (*self.done, *self.group)


class RunWriter:
    """The writing side of a run folder. Each file is replaced whole, so that a kill at any time leaves it readable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = MetricsLog(path)

    @classmethod
    def create(cls, path: str | Path, *, resume: bool = False) -> RunWriter:
        """Make the folder, or take it up again with ``resume``.

        Raises: RunError if it holds a run (without ``resume``) or anything else, or cannot be written to.
        """
        path = Path(path)
        cls.refuse(path, resume=resume)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"Cannot write to {str(path)!r}: {error.strerror}. Give another folder with --out."
            ) from None
        return cls(path)

    @staticmethod
    def refuse(path: str | Path, *, resume: bool = False) -> None:
        """Raise what ``create`` would raise over the folder's content; changes nothing. Raises: RunError."""
        path = Path(path)
        if is_run(path):
            if not resume:
                raise RunError(f"{str(path)!r} holds a run already. Continue it with --resume, or give another --out.")
        elif path.is_dir():
            others = [p.name for p in path.iterdir() if not p.name.endswith(".partial")]
            if others:
                raise RunError(
                    f"{str(path)!r} is no run folder and not empty (it holds {min(others)!r}). Give another --out."
                )
        elif path.exists():
            raise RunError(f"{str(path)!r} is a file; a run needs a folder. Give another --out.")

    def clear_leftovers(self) -> None:
        """Remove what a process that was killed while writing left half done."""
        for leftover in self.path.glob(".*.partial"):
            leftover.unlink(missing_ok=True)

    def write_recipe(self, text: str) -> None:
        """Put the resolved recipe, as YAML, into the folder."""
        atomic_write(self.path / RECIPE, text.encode())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Put what is known so far into the folder, as JSON."""
        atomic_write(self.path / SUMMARY, (json.dumps(summary, indent=2, sort_keys=True) + "\n").encode())

    def save_network(self, job: str, state: dict[str, Tensor]) -> None:
        """Write ``<job>.safetensors``: the same bytes for the same tensors, no time stamps."""
        from flowstill.nets import save_weights

        save_weights(state, self.path / f"{job}.safetensors")

    def save_state(self, state: dict[str, Any]) -> None:
        """Write all that resuming needs: tensors, numbers, strings and containers of them, nothing else."""
        import torch

        atomic_write(self.path / STATE, lambda partial: torch.save(state, partial))

    def load_state(self, *, lazy: bool = False) -> dict[str, Any] | None:
        """The last saved state, on the CPU; None if there is none. lazy: leave its tensors on the disk until they are used.

        Raises: RunError if the file is not such a state.
        """
        import torch

        path = self.path / STATE
        if not path.exists():
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of odd pickles, and then refuses them
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)
        except Exception as error:  # a broken file fails in as many ways as there are bytes; none of them runs code
            reason = str(error).strip().split("\n")[0][:200]
            raise RunError(
                f"{str(path)!r} is no state to resume from: it is damaged, or holds more than plain tensors "
                f"({reason}). Delete the folder and train anew."
            ) from None
        if not isinstance(state, dict):
            raise RunError(f"{str(path)!r} is no state to resume from. Delete the folder and train anew.")
        return state

    def progress(self) -> Progress:
        """How far the run is. Raises: RunError if that cannot be read."""
        state = self.load_state(lazy=True)
        if state is not None:
            return Progress(tuple(json.loads(state["summary"])["jobs"]), tuple(state["group"]), state["stage"])
        summary = Run.open(self.path).summary
        return Progress(tuple(summary["jobs"]) if summary.get("finished") else ())

    def drop_state(self) -> None:
        """Remove the state of a run that is finished."""
        (self.path / STATE).unlink(missing_ok=True)

    def close(self) -> None:
        """Flush and close the metrics."""
        self.metrics.close()
