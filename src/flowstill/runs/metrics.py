"""Measurements: rows of one CSV file, and TensorBoard events beside it."""

from __future__ import annotations

import csv
import importlib.util
import io
import logging
import os
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from flowstill.errors import RunError
from flowstill.files import atomic_write

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS, DAMAGED, EVENTS = "metrics.csv", "metrics-damaged.csv", "tensorboard"
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

    A last line that a kill cut off is dropped, and so are the earlier rows of a job that was trained again from the start.

    Raises:
        RunError: the file cannot be read, or a row does not have the expected columns.
    """
    if not path.exists():
        return []
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RunError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    rows = []
    for number, line in enumerate(_lines(text), 1):
        row = None if number == 1 else _row(line)
        if row is None and not (number == 1 and line.strip() == HEADER.strip()):
            raise RunError(
                f"{str(path)!r}, line {number}: expected {'the header' if number == 1 else 'a row of'} "
                f"{','.join(Measurement._fields)}. Received: {line[:60].decode(errors='replace').strip()!r}. It was edited "
                "by hand or damaged; fix the line, or move the file away."
            )
        if row is not None:
            rows.append(row)
    return _latest(rows)


def _lines(text: bytes) -> list[bytes]:
    """The lines of a file, without a last one that a kill cut off."""
    return text[: text.rfind(b"\n") + 1].splitlines(keepends=True)


def _row(line: bytes) -> Measurement | None:
    """Parse a line; None if it is not a row."""
    try:
        (fields,) = csv.reader([line.decode()], strict=True)
        job, stage, step, metric, value = fields
        return Measurement(job, stage, int(step), metric, float(value))
    except (ValueError, csv.Error):  # a UnicodeDecodeError is a ValueError too
        return None


HEADER = (",".join(Measurement._fields) + "\n").encode()


def _latest(rows: list[Measurement]) -> list[Measurement]:
    """The rows of each job's last attempt; an attempt begins where a job's step falls below one already measured."""
    last: dict[tuple[str, str, str], int] = {}
    begins: dict[str, int] = {}
    for number, row in enumerate(rows):
        if row.step <= last.get((row.job, row.stage, row.metric), -1):
            begins[row.job] = number
            last = {key: step for key, step in last.items() if key[0] != row.job}
        last[row.job, row.stage, row.metric] = row.step
    return [row for number, row in enumerate(rows) if number >= begins.get(row.job, 0)]


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
        """Drop what was logged after ``position`` (0: everything) from both the file and the events."""
        self.close()
        if self._events.exists() and not self._with_events:
            _log.warning(
                "%r has TensorBoard events, but TensorBoard is not installed: new measurements go to %s only. "
                "To continue the events, stop, run `pip install 'flowstill[tensorboard]'` and resume.",
                str(self._events.parent),
                METRICS,
            )
        there = self.path.read_bytes() if self.path.exists() else b""
        self._keep(there[:position], there, short=position - len(there))

    def keep_jobs(self, jobs: Container[str]) -> None:
        """Drop the rows of other jobs."""
        self.close()
        there = self.path.read_bytes() if self.path.exists() else b""
        self._keep(b"".join(line for line in _lines(there) if not (row := _row(line)) or row.job in jobs), there)

    def _keep(self, kept: bytes, there: bytes, short: int = 0) -> None:
        """Keep only the lines ``kept`` of the file's content ``there``; drop unreadable lines, with a warning.

        A damaged log must not end a run, so the run continues without them; the original file is kept under another name.
        """
        head, *lines = kept.splitlines(keepends=True) or [HEADER]
        whole = [line for line in lines if line.endswith(b"\n") and _row(line)]
        unread = len(lines) - len(whole) + (head != HEADER)
        if unread or short > 0:
            if there:
                atomic_write(self.path.with_name(DAMAGED), there)
            _log.warning(
                "%r lacks measurements from before the run's state was saved: %s. The run continues without them%s.",
                str(self.path),
                f"{unread} of its lines cannot be read" if unread else f"its last {short} bytes are missing",
                f"; {DAMAGED} is a copy of it" if there else "",
            )
            kept = HEADER + b"".join(whole)
        if kept != there:
            atomic_write(self.path, kept)
        rows = [row for line in whole if (row := _row(line))]
        self._kept = {(row.job, row.stage): row.step for row in rows}

    def end_job(self, job: str) -> None:
        """Close the job's TensorBoard events, which hold a thread; logging opens them again."""
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
                self._file.write(HEADER)
        return self._file

    def _writer(self, job: str, stage: str) -> SummaryWriter:
        """The stage's TensorBoard events; after a truncation they first purge what was dropped."""
        from torch.utils.tensorboard import SummaryWriter

        if (job, stage) not in self._writers:
            self.end_job(job)  # of its earlier stages: each has a thread
            purge = None if self._kept is None else self._kept.get((job, stage), -1) + 1
            self._writers[job, stage] = SummaryWriter(str(self._events / job / stage), purge_step=purge)
        return self._writers[job, stage]
