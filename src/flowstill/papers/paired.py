"""Differences between a taught network and the same network trained alone, seed by seed, with intervals."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowstill.files import atomic_write
from flowstill.papers.rows import cell, is_lost, jobs_of
from flowstill.papers.table import markdown_table
from flowstill.recipes.recipe import AfterStage, Recipe
from flowstill.runs import Summary

CONFIDENCE = 0.95  # how often an interval covers the mean if the differences are normal


@dataclass(frozen=True)
class Difference:
    """A row's accuracy minus its baseline's, in percentage points.

    Attributes:
        row: the taught row.
        baseline: the row trained alone.
        by_seed: seed -> difference, for the seeds that have both.
        diverged: the seeds left out because a job diverged.
    """

    row: str
    baseline: str
    by_seed: Mapping[int, float]
    diverged: tuple[int, ...] = ()

    @property
    def mean(self) -> float | None:
        """Mean over the seeds; None if there are none."""
        return statistics.fmean(self.by_seed.values()) if self.by_seed else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's t interval for the mean, 95 %; None for fewer than two seeds.

        It covers what seeds draw (initial weights, order, augmentation, labels, held-out images) for one teacher. It
        holds for one difference: among twenty, one will miss by chance.

        Example:
            >>> low, high = Difference("fsp", "alone", {0: 1.0, 1: 2.0, 2: 3.0}).interval
            >>> round(low, 2), round(high, 2)
            (-0.48, 4.48)
        """
        count = len(self.by_seed)
        if count < 2 or self.mean is None:
            return None
        error = statistics.stdev(self.by_seed.values()) / math.sqrt(count)
        if error == 0:
            return self.mean, self.mean
        from scipy.stats import t  # slow to import; its ttest_1samp warns of differences that are nearly equal

        low, high = t.interval(CONFIDENCE, count - 1, loc=self.mean, scale=error)
        return float(low), float(high)


def baselines(recipe: Recipe, row: str, rows: Sequence[str]) -> tuple[str, ...]:
    """Find the rows that a taught row is compared with.

    A baseline has the same networks, the same number of them, and as many labels. They had no teacher, start from
    initial weights, and teach no other job. If some have the row's weight decay, only those are baselines.

    Args:
        recipe: the recipe.
        row: the row to compare.
        rows: the candidates.

    Returns:
        The baselines among ``rows``; none for a row that was not taught.
    """
    jobs = jobs_of(recipe, row)
    if not all(_taught(recipe, name) for name in jobs):
        return ()
    teachers = {job.teacher for job in recipe.jobs.values()}

    def comparable(others: Sequence[str]) -> bool:
        if any(_taught(recipe, name) or recipe.jobs[name].start or name in teachers for name in others):
            return False
        both = [[(recipe.jobs[name].network, recipe.jobs[name].labels) for name in names] for names in (others, jobs)]
        return both[0] == both[1]

    found = tuple(other for other in rows if comparable(jobs_of(recipe, other)))
    alike = tuple(other for other in found if _decays(recipe, jobs_of(recipe, other)) == _decays(recipe, jobs))
    return alike or found


def _decays(recipe: Recipe, jobs: Sequence[str]) -> set[float]:
    """The weight decays of the jobs' networks, without zeros."""
    players = [player for name in jobs for stage in recipe.jobs[name].stages for player in stage.players.values()]
    return {player.optimizer.weight_decay for player in players if "student" in player.modules} - {0.0}


def _taught(recipe: Recipe, name: str) -> bool:
    """Whether a teacher took part in training the job, or the job that it starts from."""
    job = recipe.jobs[name]
    return bool(job.teacher) or (isinstance(job.start, AfterStage) and _taught(recipe, job.start.job))


def _uniform(recipe: Recipe, rows: Sequence[str]) -> Iterator[str]:
    """The rows; a row that mixes taught and untaught jobs is replaced by its jobs."""
    for row in rows:
        jobs = jobs_of(recipe, row)
        yield from (row,) if len({_taught(recipe, name) for name in jobs}) == 1 else jobs


def paired_differences(recipe: Recipe, rows: Sequence[str], summaries: Mapping[int, Summary]) -> tuple[Difference, ...]:
    """Compare each taught row with each of its baselines.

    Args:
        recipe: the recipe.
        rows: the rows to compare, baselines among them.
        summaries: seed -> summary of its run.
    """
    found, rows = [], tuple(_uniform(recipe, rows))
    for row in rows:
        for baseline in baselines(recipe, row, rows):
            by_seed = {}
            for seed, summary in summaries.items():
                taught, alone = (cell(recipe, summary, name, "accuracy") for name in (row, baseline))
                if taught is not None and alone is not None:
                    by_seed[seed] = taught - alone
            lost = tuple(
                seed for seed, one in summaries.items() if any(is_lost(recipe, one, name) for name in (row, baseline))
            )
            if by_seed or lost:
                found.append(Difference(row, baseline, by_seed, lost))
    return tuple(found)


def mean_and_interval(difference: Difference) -> str:
    """Format mean and interval.

    Example:
        >>> mean_and_interval(Difference("fsp", "alone", {0: 1.0, 1: 2.0, 2: 3.0}))
        '+2.00 [-0.48, +4.48]'
        >>> mean_and_interval(Difference("fsp", "alone", {0: 1.0}))
        '+1.00'
    """
    interval = difference.interval
    if difference.mean is None:
        return "diverged"
    return f"{difference.mean:+.2f}" + (f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "")


def write_paired(
    recipe: Recipe, differences: Sequence[Difference], seeds: Sequence[int], out: Path, *, one_teacher: bool = True
) -> None:
    """Write ``paired.md``, a line per row and a column per baseline, and ``paired.csv`` into ``out``.

    Args:
        recipe: the recipe.
        differences: what to write.
        seeds: of the runs; each is a column of the CSV, empty where a row has no number.
        out: an existing folder.
        one_teacher: whether all seeds share one teacher.
    """
    names = tuple(dict.fromkeys(difference.baseline for difference in differences))
    rows = tuple(dict.fromkeys(difference.row for difference in differences))
    cells = {(d.row, d.baseline): mean_and_interval(d) + _missing(d, seeds) for d in differences}
    head = ("row", *(f"minus {name}" for name in names))
    lines = [head, *((row, *(cells.get((row, name), "–") for name in names)) for row in rows)]
    images = "each seed's held-out images" if recipe.data.hold_out else "one set of test images"
    teachers = "one teacher" if one_teacher else "a teacher per seed"
    legend = (
        f"Percentage points of accuracy, paired by seed: mean over {len(seeds)} seeds and its 95 % interval (Student's "
        f"t), for {teachers} and {images}. One in twenty such intervals misses by chance."
    )
    text = f"# {recipe.name}: taught minus alone\n\n{markdown_table(lines)}\n\n{legend}\n"
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "baseline", "mean", "low", "high", *(f"seed_{seed}" for seed in seeds)])
    for d in differences:
        values = [d.mean, *(d.interval or (None, None)), *(d.by_seed.get(seed) for seed in seeds)]
        texts = ["" if value is None else repr(round(value, 6)) for value in values]
        lost = ["diverged" if seed in d.diverged else text for seed, text in zip(seeds, texts[3:], strict=True)]
        writer.writerow([d.row, d.baseline, *texts[:3], *lost])
    for name, content in (("paired.md", text), ("paired.csv", file.getvalue())):
        atomic_write(out / name, content.encode())


def _missing(difference: Difference, seeds: Sequence[int]) -> str:
    count, lost = len(difference.by_seed), len(difference.diverged)
    if count in (0, len(seeds)):
        return ""
    return f" ({count} seed{'s' if count > 1 else ''}{f', {lost} diverged' if lost else ''})"
