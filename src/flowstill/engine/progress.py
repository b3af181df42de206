"""A line that tells how far a run is; silent where nobody watches."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Watch:
    """Shows job, stage, step, images a second, losses and the time left on standard error.

    show: None shows it if standard error is a terminal.
    """

    def __init__(self, show: bool | None = None) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.fields[job]}[/bold] {task.fields[stage]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]:>6.0f} images/s"),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (sys.stderr.isatty() if show is None else show),
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Watch:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage(self, job: str, stage: str, step: int, steps: int) -> None:
        """A new stage begins."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(
            "", total=steps, completed=step, job=job, stage=stage, speed=0.0, losses=""
        )

    def step(self) -> None:
        """One more step is done."""
        assert self._task is not None
        self._progress.advance(self._task)

    def losses(self, values: dict[str, float], speed: float) -> None:
        """What the last steps came to."""
        assert self._task is not None
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._progress.update(self._task, speed=speed, losses=text)

    def say(self, text: str) -> None:
        """A line that stays, where somebody watches."""
        if not self._progress.disable:
            self._progress.console.print(text, highlight=False)
