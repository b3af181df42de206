"""A run's results, job by job, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowstill.runs import JobSummary, Run, Scores


@dataclass(frozen=True)
class Result:
    """One row of the results: a job, or an ensemble of jobs. None: not known (yet).

    Attributes:
        name: of the job or ensemble.
        network: its name; empty for an ensemble.
        about: the recipe's sentence about it.
        labels: number of labelled images of the task; None for all.
        steps: updates over all stages.
        parameters: of the network.
        macs: multiply-accumulates for one image.
        seconds: training time.
        accuracy: on the test images, in percent.
        paper: the accuracy that the paper prints, in percent.
        gain: percentage points over the baseline.
        loss: mean cross-entropy on the test images.
        top5: on the test images, in percent.
        teacher: name of the job that taught it.
        missing: ``diverged`` or ``not run`` if it has no accuracy because something diverged; empty otherwise.
        reason: the same in full.
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
    loss: float | None = None
    top5: float | None = None
    teacher: str | None = None
    missing: str = ""
    reason: str = ""


def results(run: Run) -> list[Result]:
    """The jobs in the recipe's order, then the ensembles."""
    jobs: Mapping[str, Any] = run.recipe.get("jobs", {})
    paper: Mapping[str, Any] = (run.recipe.get("paper") or {}).get("accuracy") or {}
    base = baseline(run)
    reference = run.summary.jobs.get(base or "", JobSummary()).accuracy

    def gain(name: str, accuracy: float | None) -> float | None:
        if accuracy is None or reference is None or name == base or name in _teachers(jobs):
            return None
        return accuracy - reference

    rows = []
    for name, job in jobs.items():
        done = run.summary.jobs.get(name, JobSummary())
        rows.append(
            Result(
                name,
                network=job["network"]["name"],
                about=done.about or job.get("about") or "",
                labels=done.labels,
                steps=done.steps,
                parameters=done.parameters,
                macs=done.macs,
                seconds=done.seconds,
                accuracy=done.accuracy,
                paper=paper.get(name),
                gain=gain(name, done.accuracy),
                loss=done.loss,
                top5=done.top5,
                teacher=job.get("teacher"),
                missing=done.missing,
                reason=done.reason,
            )
        )
    for name, ensemble in (run.recipe.get("ensembles") or {}).items():
        scores = run.summary.ensembles.get(name, Scores())
        members: Sequence[str] = ensemble.get("jobs", ())
        rows.append(
            Result(
                name,
                about=f"{', '.join(members)} together",
                accuracy=scores.accuracy,
                paper=paper.get(name),
                gain=gain(name, scores.accuracy),
                loss=scores.loss,
                top5=scores.top5,
                missing=scores.missing,
                reason=scores.reason,
            )
        )
    return rows


def compared_with(run: Run) -> str | None:
    """What the gains are over: the baseline's name, with a word if it has no accuracy; None without a baseline."""
    base = baseline(run)
    lost = run.summary.jobs.get(base or "", JobSummary()).missing
    return f"{base} ({lost})" if lost else base


def in_full(row: Result) -> str:
    """Why a row has no accuracy; empty if nothing went wrong."""
    return row.reason if row.missing == "not run" else f"{row.missing}: {row.reason}" if row.missing else ""


def baseline(run: Run) -> str | None:
    """The job that others are compared with: the first that neither has a teacher nor is one.

    Returns:
        Its name; None if no job has a teacher, or every job without one teaches.
    """
    jobs: Mapping[str, Any] = run.recipe.get("jobs", {})
    teachers = _teachers(jobs)
    return next(
        (name for name, job in jobs.items() if teachers and not job.get("teacher") and name not in teachers), None
    )


def _teachers(jobs: Mapping[str, Any]) -> set[str]:
    return {job["teacher"] for job in jobs.values() if job.get("teacher")}


def verdict(run: Run) -> list[str]:
    """One sentence for each job that diverged, then for each finished job with a teacher, comparing it with the
    teacher and the baseline.
    """
    rows = {row.name: row for row in results(run)}
    base, sentences = baseline(run), [f"{row.name}: {in_full(row)}." for row in rows.values() if row.missing]
    for row in rows.values():
        teacher = rows.get(row.teacher or "")
        if row.accuracy is None or teacher is None:
            continue
        text = f"{row.name} ({row.network}), taught by {teacher.name} ({teacher.network}), reaches {row.accuracy:.2f} %"
        if row.gain is not None:
            text += f", {abs(row.gain):.2f} points {'above' if row.gain >= 0 else 'below'} {base}"
        if teacher.accuracy is not None:
            text += f"; the teacher reaches {teacher.accuracy:.2f} %"
        if row.parameters and teacher.parameters and teacher.parameters > row.parameters:
            text += f" with {teacher.parameters / row.parameters:.1f} times the parameters"
        sentences.append(text + ".")
    return sentences
