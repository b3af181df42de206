"""Measurements: rows of one CSV file, and TensorBoard events beside it."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flowstill.errors import RunError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS, EVENTS = "metrics.csv", "tensorboard"


class Measurement(NamedTuple):
    """One row of ``metrics.csv``. ``step`` counts the updates of its stage done so far."""

    job: str
    stage: str
    step: int
    metric: str
    value: float


def read_metrics(path: Path) -> list[Measurement]:
    """The rows of a metrics file; none if there is no file.

    A last line that a kill cut off is left out. Raises: RunError if a row is not one.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    rows = csv.reader(text[: text.rfind("\n") + 1].splitlines()[1:])
    try:
        return [Measurement(job, stage, int(step), metric, float(value)) for job, stage, step, metric, value in rows]
    except ValueError as error:
        raise RunError(f"{str(path)!r}: a row is not {','.join(Measurement._fields)} ({error}).") from None


class MetricsLog:
    """Measurements as rows of ``metrics.csv`` and as TensorBoard events, one folder of events for each stage."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS
        self._events = folder / EVENTS
        self._writers: dict[tuple[str, str], SummaryWriter] = {}
        self._kept: dict[tuple[str, str], int] | None = None  # after truncate: each stage's last step that counts
        self._file: io.BufferedWriter | None = None

    def log(self, job: str, stage: str, step: int, values: dict[str, float]) -> None:
        """Add ``{metric: value}`` after ``step`` updates of the stage."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [job, stage, step, metric, repr(float(value))] for metric, value in values.items()
        )
        self._open().write(text.getvalue().encode())
        writer = self._writer(job, stage)
        for metric, value in values.items():
            writer.add_scalar(metric, value, step)
        if self._kept is not None:
            self._kept[job, stage] = step

    def flush(self) -> None:
        """Hand everything to the operating system, so that a killed process loses nothing."""
        self._open().flush()
        for writer in self._writers.values():
            writer.flush()

    def position(self) -> int:
        """The file's length in bytes, everything so far being on the disk: where a state saved now would resume."""
        self.flush()
        file = self._open()
        os.fsync(file.fileno())
        return file.tell()

    def truncate(self, position: int) -> None:
        """Forget what was logged after ``position`` (0: everything), in both places. Raises: RunError."""
        self.close()
        length = self.path.stat().st_size if self.path.exists() else 0
        if length < position:
            raise RunError(
                f"{str(self.path)!r} is shorter than when the run's state was saved: it was changed since. "
                "Put the old file back, or train anew in another --out."
            )
        if length:
            os.truncate(self.path, position)
        self._kept = {(row.job, row.stage): row.step for row in read_metrics(self.path)}

    def close(self) -> None:
        """Close the files; logging opens them again."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> io.BufferedWriter:
        """The CSV file, opened to append; a new one begins with its header."""
        if self._file is None:
            self._file = self.path.open("ab")
            if self._file.tell() == 0:
                self._file.write((",".join(Measurement._fields) + "\n").encode())
        return self._file

    def _writer(self, job: str, stage: str) -> SummaryWriter:
        """The stage's TensorBoard events; after a truncation they begin by purging what was forgotten."""
        from torch.utils.tensorboard import SummaryWriter

        if (job, stage) not in self._writers:
            purge = None if self._kept is None else self._kept.get((job, stage), -1) + 1
            self._writers[job, stage] = SummaryWriter(str(self._events / job / stage), purge_step=purge)
        return self._writers[job, stage]
