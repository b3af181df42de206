"""Measurements: rows of one CSV file, and TensorBoard events beside it."""

from __future__ import annotations

import csv
import importlib.util
import io
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from flowstill.errors import RunError, option

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS, EVENTS = "metrics.csv", "tensorboard"
_log = logging.getLogger("flowstill")


class Measurement(NamedTuple):
    """One row of ``metrics.csv``.

    Attributes:
        job: name of the job.
        stage: name of its stage.
        step: updates of the stage done so far.
        metric: such as ``train/labels`` or ``test/accuracy``.
        value: the number.
    """

    job: str
    stage: str
    step: int
    metric: str
    value: float


def read_metrics(path: Path) -> list[Measurement]:
    """Read the rows of a metrics file; none if the file does not exist.

    A last line that a kill cut off is dropped.

    Raises:
        RunError: a row does not have the expected columns.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    rows = csv.reader(text[: text.rfind("\n") + 1].splitlines()[1:])
    try:
        return [Measurement(job, stage, int(step), metric, float(value)) for job, stage, step, metric, value in rows]
    except ValueError as error:
        raise RunError(f"{str(path)!r}: expected rows of {','.join(Measurement._fields)} ({error}).") from None


class MetricsLog:
    """Writes measurements as rows of ``metrics.csv`` and, if TensorBoard is installed, as events, one folder per stage.

    A context manager: leaving it closes all files and ends TensorBoard's threads.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS
        self._events = folder / EVENTS
        self._with_events = importlib.util.find_spec("tensorboard") is not None
        self._writers: dict[tuple[str, str], SummaryWriter] = {}
        self._kept: dict[tuple[str, str], int] | None = None  # after truncate: each stage's last valid step
        self._file: io.BufferedWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, job: str, stage: str, step: int, values: dict[str, float]) -> None:
        """Add ``{metric: value}`` after ``step`` updates of the stage."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [job, stage, step, metric, repr(float(value))] for metric, value in values.items()
        )
        self._open().write(text.getvalue().encode())
        if self._with_events:
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
        """Write everything to the disk and return the file's length in bytes, which a saved state stores."""
        self.flush()
        file = self._open()
        os.fsync(file.fileno())
        return file.tell()

    def truncate(self, position: int) -> None:
        """Drop what was logged after ``position`` (0: everything) from both the file and the events.

        Raises:
            RunError: the file is shorter than ``position``.
        """
        self.close()
        if self._events.exists() and not self._with_events:
            _log.warning(
                "%r has TensorBoard events, but TensorBoard is not installed: new measurements go to %s only. "
                "To continue the events, stop, run `pip install 'flowstill[tensorboard]'` and resume.",
                str(self._events.parent),
                METRICS,
            )
        length = self.path.stat().st_size if self.path.exists() else 0
        if length < position:
            raise RunError(
                f"{str(self.path)!r}: expected at least {position} bytes, as when the run's state was saved. "
                f"Received: {length}. Restore the file, or start over in another {option('out')}."
            )
        if length:
            os.truncate(self.path, position)
        self._kept = {(row.job, row.stage): row.step for row in read_metrics(self.path)}

    def end_job(self, job: str) -> None:
        """Close the job's TensorBoard events, which hold a thread per stage; logging opens them again."""
        for key in [key for key in self._writers if key[0] == job]:
            self._writers.pop(key).close()

    def close(self) -> None:
        """Close all files; logging opens them again."""
        for job, _ in list(self._writers):
            self.end_job(job)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> io.BufferedWriter:
        """The CSV file, opened to append; a new one starts with its header."""
        if self._file is None:
            self._file = self.path.open("ab")
            if self._file.tell() == 0:
                self._file.write((",".join(Measurement._fields) + "\n").encode())
        return self._file

    def _writer(self, job: str, stage: str) -> SummaryWriter:
        """The stage's TensorBoard events; after a truncation they start by purging what was dropped."""
        from torch.utils.tensorboard import SummaryWriter

        if (job, stage) not in self._writers:
            purge = None if self._kept is None else self._kept.get((job, stage), -1) + 1
            self._writers[job, stage] = SummaryWriter(str(self._events / job / stage), purge_step=purge)
        return self._writers[job, stage]
