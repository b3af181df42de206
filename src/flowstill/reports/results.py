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
        baseline: name of the job that it is compared with.
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
    baseline: str | None = None
    loss: float | None = None
    top5: float | None = None
    teacher: str | None = None
    missing: str = ""
    reason: str = ""


def results(run: Run) -> list[Result]:
    """The jobs in the recipe's order, then the ensembles."""
    jobs: Mapping[str, Any] = run.recipe.get("jobs", {})
    paper: Mapping[str, Any] = (run.recipe.get("paper") or {}).get("accuracy") or {}

    def gain(base: str | None, accuracy: float | None) -> float | None:
        reference = run.summary.jobs.get(base or "", JobSummary()).accuracy
        return None if accuracy is None or reference is None else accuracy - reference

    rows = []
    for name, job in jobs.items():
        done, base = run.summary.jobs.get(name, JobSummary()), baseline(run, name)
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
                gain=gain(base, done.accuracy),
                baseline=base,
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
        base = next(filter(None, (baseline(run, member) for member in members)), None)
        rows.append(
            Result(
                name,
                about=f"{', '.join(members)} together",
                accuracy=scores.accuracy,
                paper=paper.get(name),
                gain=gain(base, scores.accuracy),
                baseline=base,
                loss=scores.loss,
                top5=scores.top5,
                missing=scores.missing,
                reason=scores.reason,
            )
        )
    return rows


def in_full(row: Result) -> str:
    """Why a row has no accuracy; empty if nothing went wrong."""
    return row.reason if row.missing == "not run" else f"{row.missing}: {row.reason}" if row.missing else ""


def baseline(run: Run, name: str) -> str | None:
    """The job that another is compared with: one that neither has a teacher nor is one.

    The first with the same network, as many labels and the same weight decay; else the first with the same network and
    as many labels; else the first.

    Returns:
        Its name; None for a teacher, for a baseline itself, and if every job without a teacher teaches.
    """
    jobs: Mapping[str, Any] = run.recipe.get("jobs", {})
    teachers = _teachers(jobs)
    found = [other for other, job in jobs.items() if teachers and not job.get("teacher") and other not in teachers]
    if name in teachers or not found:
        return None

    def likeness(other: str) -> tuple[bool, bool]:
        mine, its = jobs[name], jobs[other]
        same = mine["network"] == its["network"] and mine.get("labels") == its.get("labels")
        return same, same and _decays(mine) == _decays(its)

    best = max(found, key=likeness)
    return None if best == name else best


def gain_over(rows: Sequence[Result]) -> str:
    """The jobs that the rows' gains are over, such as ``alone``, or ``alone; narrow for kr, kr_dense``.

    Example:
        >>> gain_over([Result("a", gain=1.0, baseline="alone"), Result("b", gain=2.0, baseline="narrow")])
        'alone; narrow for b'
        >>> gain_over([Result("alone", accuracy=90.0), Result("taught", baseline="alone", missing="diverged")])
        'alone'
    """
    names: dict[str, list[str]] = {}
    lost = {row.name: f"{row.name} ({row.missing})" for row in rows if row.missing}
    for row in rows:
        compared = row.gain is not None or row.missing or (row.accuracy is not None and row.baseline in lost)
        if row.baseline and compared:
            names.setdefault(lost.get(row.baseline, row.baseline), []).append(row.name)
    return "; ".join(f"{base} for {', '.join(of)}" if n else base for n, (base, of) in enumerate(names.items()))


def _decays(job: Mapping[str, Any]) -> set[float]:
    """The factors by which the job's network decays, wherever it does."""
    players = [
        player for stage in job.get("stages") or () for player in (stage.get("players") or {"student": stage}).values()
    ]
    moving = [player for player in players if "student" in player.get("modules", ("student",))]
    return {(player.get("optimizer") or {}).get("weight_decay", 0) for player in moving} - {0}


def _teachers(jobs: Mapping[str, Any]) -> set[str]:
    return {job["teacher"] for job in jobs.values() if job.get("teacher")}


def verdict(run: Run) -> list[str]:
    """One sentence for each job that diverged, then for each finished job with a teacher, comparing it with the
    teacher and the baseline.
    """
    rows = {row.name: row for row in results(run)}
    sentences = [f"{row.name}: {in_full(row)}." for row in rows.values() if row.missing]
    for row in rows.values():
        teacher = rows.get(row.teacher or "")
        if row.accuracy is None or teacher is None:
            continue
        text = f"{row.name} ({row.network}), taught by {teacher.name} ({teacher.network}), reaches {row.accuracy:.2f} %"
        if row.gain is not None:
            text += f", {abs(row.gain):.2f} points {'above' if row.gain >= 0 else 'below'} {row.baseline}"
        if teacher.accuracy is not None:
            text += f"; the teacher reaches {teacher.accuracy:.2f} %"
        if row.parameters and teacher.parameters and teacher.parameters > row.parameters:
            text += f" with {teacher.parameters / row.parameters:.1f} times the parameters"
        sentences.append(text + ".")
    return sentences
