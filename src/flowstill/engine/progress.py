"""A progress line in the terminal; silent where there is none."""

from __future__ import annotations

import sys
from types import TracebackType

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn


class Progress:
    """Shows job, stage, step, images per second, losses and the time left on standard error.

    Args:
        show: None shows it if standard error is a terminal.
    """

    def __init__(self, show: bool | None = None) -> None:
        self._bar = rich.progress.Progress(
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

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def stage(self, job: str, stage: str, step: int, steps: int) -> None:
        """Start a new stage."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task("", total=steps, completed=step, job=job, stage=stage, speed=0.0, losses="")

    def step(self) -> None:
        """Count one more step."""
        assert self._task is not None
        self._bar.advance(self._task)

    def losses(self, values: dict[str, float], speed: float) -> None:
        """Show the latest losses and speed."""
        assert self._task is not None
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._bar.update(self._task, speed=speed, losses=text)

    def say(self, text: str) -> None:
        """Print a line that stays, if the progress is shown."""
        if not self._bar.disable:
            self._bar.console.print(text, highlight=False)
