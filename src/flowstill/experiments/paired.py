"""Differences between a taught network and the same network alone, seed by seed, with intervals."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowstill.experiments.rows import cell, jobs_of
from flowstill.experiments.table import markdown_table
from flowstill.files import atomic_write
from flowstill.recipes.schema import Recipe

SURE = 0.95  # how often an interval covers the mean, were the differences normal


@dataclass(frozen=True)
class Difference:
    """A row's accuracies less those of ``baseline``, in percent, one for each seed."""

    row: str
    baseline: str
    each: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.each)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's t interval for the mean, 95 %; None for fewer than two seeds.

        It speaks of the seeds alone (first weights, order, augmentation, labels), for one teacher and one set of test
        images, and of one difference: among twenty, one will lie outside by chance.

        >>> low, high = Difference("fsp", "alone", (1.0, 2.0, 3.0)).interval
        >>> round(low, 2), round(high, 2)
        (-0.48, 4.48)
        """
        if len(self.each) < 2:
            return None
        from scipy.stats import t  # which is slow to import

        reach = float(t.ppf((1 + SURE) / 2, len(self.each) - 1))
        half = reach * statistics.stdev(self.each) / math.sqrt(len(self.each))
        return self.mean - half, self.mean + half


def baselines(recipe: Recipe, row: str) -> tuple[str, ...]:
    """The rows of the same network as a taught row's that no teacher taught; none for a row that is not taught."""
    jobs = [recipe.jobs[name] for name in jobs_of(recipe, row)]
    teachers = {job.teacher for job in recipe.jobs.values()}
    if not all(job.teacher for job in jobs):
        return ()
    alone = [name for name, job in recipe.jobs.items() if not (job.teacher or job.start or name in teachers)]
    return tuple(name for name in alone if recipe.jobs[name].network == jobs[0].network)


def paired_differences(
    recipe: Recipe, rows: Sequence[str], summaries: Sequence[Mapping[str, Any]]
) -> tuple[Difference, ...]:
    """Of each taught row to each of its baselines, over the runs that have both. summaries: of a run for each seed."""
    found = []
    for row in rows:
        for baseline in baselines(recipe, row):
            pairs = [(cell(recipe, s, row, "accuracy"), cell(recipe, s, baseline, "accuracy")) for s in summaries]
            each = tuple(ours - alone for ours, alone in pairs if ours is not None and alone is not None)
            if each:
                found.append(Difference(row, baseline, each))
    return tuple(found)


def shown(difference: Difference) -> str:
    """Mean and interval.

    >>> shown(Difference("fsp", "alone", (1.0, 2.0, 3.0))), shown(Difference("fsp", "alone", (1.0,)))
    ('+2.00 [-0.48, +4.48]', '+1.00')
    """
    interval = difference.interval
    return f"{difference.mean:+.2f}" + (f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "")


def write_paired(recipe: Recipe, differences: Sequence[Difference], out: Path) -> None:
    """``paired.md``, a line for each row and a column for each baseline, and ``paired.csv`` into ``out``."""
    names = tuple(dict.fromkeys(difference.baseline for difference in differences))
    rows = tuple(dict.fromkeys(difference.row for difference in differences))
    cells = {(d.row, d.baseline): shown(d) for d in differences}
    head = ("row", *(f"less {name}" for name in names))
    lines = [head, *((row, *(cells.get((row, name), "–") for name in names)) for row in rows)]
    seeds = max(len(difference.each) for difference in differences)
    said = (f"Points of accuracy, paired seed by seed: mean over {seeds} seeds and its 95 % interval (Student's t), for one "
            "teacher and one set of test images. Among twenty such intervals one misses by chance.")  # fmt: skip
    text = f"# {recipe.name}: taught less alone\n\n{markdown_table(lines)}\n\n{said}\n"
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "baseline", "mean", "low", "high", *(f"seed_{number}" for number in range(seeds))])
    for d in differences:
        numbers = (d.mean, *(d.interval or ("", "")), *d.each)
        writer.writerow([d.row, d.baseline, *(n if isinstance(n, str) else repr(round(n, 6)) for n in numbers)])
    for name, content in (("paired.md", text), ("paired.csv", file.getvalue())):
        atomic_write(out / name, content.encode())
