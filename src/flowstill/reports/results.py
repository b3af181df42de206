"""A run's results, job by job, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowstill.runs import Run


@dataclass(frozen=True)
class Result:
    """One row of the table: a job, or an ensemble of jobs. None stands for what is not known (yet).

    labels: labelled images of the task, None for all. macs: multiply-accumulates for one image. accuracy, paper: in
    percent. gain: percentage points over the baseline, on the test images.
    """

    name: str
    network: str = ""
    about: str = ""
    labels: int | None = None
    steps: int | None = None
    parameters: int | None = None
    macs: int | None = None
    seconds: float | None = None
    accuracy: float | None = None
    paper: float | None = None
    gain: float | None = None


def results(run: Run) -> list[Result]:
    """The jobs in the recipe's order, then the ensembles."""
    jobs: Mapping[str, Any] = run.recipe.get("jobs", {})
    paper: Mapping[str, Any] = (run.recipe.get("paper") or {}).get("accuracy") or {}
    done: Mapping[str, Any] = run.summary.get("jobs", {})
    together: Mapping[str, Any] = run.summary.get("ensembles", {})
    base = baseline(run)
    reference: float | None = done.get(base, {}).get("accuracy") if base else None

    def gain(name: str, accuracy: float | None) -> float | None:
        if accuracy is None or reference is None or name == base or name in _teachers(jobs):
            return None
        return accuracy - reference

    rows = []
    for name, job in jobs.items():
        known = done.get(name, {})
        rows.append(
            Result(
                name,
                network=job["network"]["name"],
                about=known.get("about") or job.get("about") or "",
                labels=known.get("labels"),
                steps=known.get("steps"),
                parameters=known.get("parameters"),
                macs=known.get("macs"),
                seconds=known.get("seconds"),
                accuracy=known.get("accuracy"),
                paper=paper.get(name),
                gain=gain(name, known.get("accuracy")),
            )
        )
    for name, ensemble in (run.recipe.get("ensembles") or {}).items():
        accuracy = together.get(name, {}).get("accuracy")
        members: Sequence[str] = ensemble.get("jobs", ())
        rows.append(
            Result(
                name,
                about=f"{', '.join(members)} together",
                accuracy=accuracy,
                paper=paper.get(name),
                gain=gain(name, accuracy),
            )
        )
    return rows


def baseline(run: Run) -> str | None:
    """The job that others are held against: the first that has no teacher and is none, if any job has a teacher."""
    jobs: Mapping[str, Any] = run.recipe.get("jobs", {})
    teachers = _teachers(jobs)
    return next(
        (name for name, job in jobs.items() if teachers and not job.get("teacher") and name not in teachers), None
    )


def _teachers(jobs: Mapping[str, Any]) -> set[str]:
    return {job["teacher"] for job in jobs.values() if job.get("teacher")}


def verdict(run: Run) -> list[str]:
    """A sentence for each taught job that is done: how good it is, beside its teacher and the baseline."""
    rows = {row.name: row for row in results(run)}
    base, sentences = baseline(run), []
    for name, job in run.recipe.get("jobs", {}).items():
        row, teacher = rows[name], rows.get(job.get("teacher") or "")
        if row.accuracy is None or teacher is None:
            continue
        text = f"{name} ({row.network}), taught by {teacher.name} ({teacher.network}), reaches {row.accuracy:.2f} %"
        if row.gain is not None:
            text += f", {abs(row.gain):.2f} points {'above' if row.gain >= 0 else 'below'} {base}"
        if teacher.accuracy is not None:
            text += f"; the teacher has {teacher.accuracy:.2f} %"
        if row.parameters and teacher.parameters and teacher.parameters > row.parameters:
            text += f" with {teacher.parameters / row.parameters:.1f} times the parameters"
        sentences.append(text + ".")
    return sentences
