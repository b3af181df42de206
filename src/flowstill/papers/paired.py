"""Differences between a taught network and the same network alone, seed by seed, with intervals."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowstill.files import atomic_write
from flowstill.papers.rows import cell, jobs_of
from flowstill.papers.table import markdown_table
from flowstill.recipes.recipe import AfterStage, Recipe
from flowstill.runs import Summary

SURE = 0.95  # how often an interval covers the mean, were the differences normal


@dataclass(frozen=True)
class Difference:
    """A row's accuracies less those of ``baseline``, in percent: seed -> difference, for the seeds that have both."""

    row: str
    baseline: str
    each: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.each.values())

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's t interval for the mean, 95 %; None for fewer than two seeds.

        It speaks of what seeds draw (first weights, order, augmentation, labels, held-out images), for one teacher, and
        of one difference: among twenty, one will lie outside by chance.

        >>> low, high = Difference("fsp", "alone", {0: 1.0, 1: 2.0, 2: 3.0}).interval
        >>> round(low, 2), round(high, 2)
        (-0.48, 4.48)
        """
        if len(self.each) < 2:
            return None
        from scipy.stats import t  # which is slow to import

        reach = float(t.ppf((1 + SURE) / 2, len(self.each) - 1))
        half = reach * statistics.stdev(self.each.values()) / math.sqrt(len(self.each))
        return self.mean - half, self.mean + half


def baselines(recipe: Recipe, row: str, rows: Sequence[str]) -> tuple[str, ...]:
    """Which of ``rows`` a taught row is held against: as many of the same networks, with as many labels, that no teacher
    taught, that began from nothing and that teach none. None for a row that is not taught.
    """
    jobs = jobs_of(recipe, row)
    if not all(_taught(recipe, name) for name in jobs):
        return ()
    teachers = {job.teacher for job in recipe.jobs.values()}

    def alike(others: Sequence[str]) -> bool:
        if any(_taught(recipe, name) or recipe.jobs[name].start or name in teachers for name in others):
            return False
        both = [[(recipe.jobs[name].network, recipe.jobs[name].labels) for name in names] for names in (others, jobs)]
        return both[0] == both[1]

    return tuple(other for other in rows if alike(jobs_of(recipe, other)))


def _taught(recipe: Recipe, name: str) -> bool:
    """Whether a teacher had a part in a job's network, or in the one that it began from."""
    job = recipe.jobs[name]
    return bool(job.teacher) or (isinstance(job.start, AfterStage) and _taught(recipe, job.start.job))


def _apart(recipe: Recipe, rows: Sequence[str]) -> Iterator[str]:
    """The rows, but of one that holds taught jobs and others beside them, the jobs."""
    for row in rows:
        jobs = jobs_of(recipe, row)
        yield from (row,) if len({_taught(recipe, name) for name in jobs}) == 1 else jobs


def paired_differences(recipe: Recipe, rows: Sequence[str], summaries: Mapping[int, Summary]) -> tuple[Difference, ...]:
    """Of each taught row to each of its baselines among the rows. summaries: seed -> that of its run."""
    found, rows = [], tuple(_apart(recipe, rows))
    for row in rows:
        for baseline in baselines(recipe, row, rows):
            each = {}
            for seed, summary in summaries.items():
                ours, alone = (cell(recipe, summary, name, "accuracy") for name in (row, baseline))
                if ours is not None and alone is not None:
                    each[seed] = ours - alone
            if each:
                found.append(Difference(row, baseline, each))
    return tuple(found)


def shown(difference: Difference) -> str:
    """Mean and interval.

    >>> shown(Difference("fsp", "alone", {0: 1.0, 1: 2.0, 2: 3.0})), shown(Difference("fsp", "alone", {0: 1.0}))
    ('+2.00 [-0.48, +4.48]', '+1.00')
    """
    interval = difference.interval
    return f"{difference.mean:+.2f}" + (f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "")


def write_paired(
    recipe: Recipe, differences: Sequence[Difference], seeds: Sequence[int], out: Path, *, one_teacher: bool = True
) -> None:
    """``paired.md``, a line for each row and a column for each baseline, and ``paired.csv`` into ``out``.

    seeds: those of the runs, a column of the CSV each, empty where a row has no number. one_teacher: whether all of them
    had the same.
    """
    names = tuple(dict.fromkeys(difference.baseline for difference in differences))
    rows = tuple(dict.fromkeys(difference.row for difference in differences))
    cells = {(d.row, d.baseline): shown(d) + _few(d, seeds) for d in differences}
    head = ("row", *(f"less {name}" for name in names))
    lines = [head, *((row, *(cells.get((row, name), "–") for name in names)) for row in rows)]
    tested = "the held-out images of each seed" if recipe.data.hold_out else "one set of test images"
    whose = "one teacher" if one_teacher else "teachers of their own"
    said = (
        f"Points of accuracy, paired seed by seed: mean over {len(seeds)} seeds and its 95 % interval (Student's t), "
        f"for {whose} and {tested}. Among twenty such intervals one misses by chance."
    )
    text = f"# {recipe.name}: taught less alone\n\n{markdown_table(lines)}\n\n{said}\n"
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "baseline", "mean", "low", "high", *(f"seed_{seed}" for seed in seeds)])
    for d in differences:
        numbers = (d.mean, *(d.interval or (None, None)), *(d.each.get(seed) for seed in seeds))
        writer.writerow([d.row, d.baseline, *("" if n is None else repr(round(n, 6)) for n in numbers)])
    for name, content in (("paired.md", text), ("paired.csv", file.getvalue())):
        atomic_write(out / name, content.encode())


def _few(difference: Difference, seeds: Sequence[int]) -> str:
    return "" if len(difference.each) == len(seeds) else f" ({len(difference.each)} seeds)"
