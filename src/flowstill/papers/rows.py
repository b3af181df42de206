"""The rows of a table in a recipe: their jobs, the jobs that these build on, and the number in a cell.

A row is the job of the same name, or the jobs ``ROW_1``, ``ROW_2``, ... with the ensemble ``ROW``, or, where the columns
are variants, the jobs ``ROW_COLUMN``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from flowstill.errors import RecipeError, did_you_mean
from flowstill.papers.printed import ACCURACY
from flowstill.recipes.recipe import AfterStage, Recipe
from flowstill.runs import JobSummary, Scores, Summary

MEASURED = frozenset(
    (ACCURACY, "average", "ensemble", "top1_error", "top5_error", "total_iterations", "params_million", "flops_million")
)


def jobs_of(recipe: Recipe, row: str) -> tuple[str, ...]:
    """The jobs of a row, in order.

    Raises:
        RecipeError: unknown row; the text gives the nearest one.
    """
    if row in recipe.jobs:
        return (row,)
    found = [name for name in recipe.jobs if re.fullmatch(rf"{re.escape(row)}_\w+", name)]
    numbered = [name for name in found if re.fullmatch(rf"{re.escape(row)}_\d+", name)]
    if not found:
        rows = rows_of(recipe)
        raise RecipeError(f"{recipe.name} has no row {row!r}. {did_you_mean(row, rows)}".strip())
    return tuple(numbered if row in recipe.ensembles or len(numbered) == len(found) else found)


def rows_of(recipe: Recipe) -> tuple[str, ...]:
    """Names of all rows: the jobs' names without the number of the network in its row."""
    return tuple(dict.fromkeys(re.sub(r"_\d+$", "", name) for name in recipe.jobs))


def restricted(recipe: Recipe, rows: Iterable[str]) -> Recipe:
    """The recipe with the jobs of these rows, the jobs that they build on, and the ensembles that are complete."""
    wanted: list[str] = [job for row in rows for job in jobs_of(recipe, row)]
    for name in wanted:  # grows in the loop
        wanted += [other for other in recipe.builds_on(name) if other not in wanted]
    return replace(
        recipe,
        jobs={name: job for name, job in recipe.jobs.items() if name in wanted},
        ensembles={name: e for name, e in recipe.ensembles.items() if all(job in wanted for job in e.jobs)},
        together=tuple(
            group for group in (tuple(j for j in group if j in wanted) for group in recipe.together) if group
        ),
    )


def updates_of(recipe: Recipe, jobs: Sequence[str]) -> int:
    """Count the updates of these jobs and of the jobs that they start from, shared jobs once; teachers do not count.

    Example:
        >>> from flowstill.recipes.load import load_recipe
        >>> updates_of(load_recipe("fsp-table3"), ["fsp"])
        85000
    """
    teachers = {job.teacher for job in recipe.jobs.values()}
    total, counted = 0, set()
    for name in jobs:
        job = recipe.jobs[name]
        total += sum(stage.steps for stage in job.stages)
        if isinstance(job.start, AfterStage) and job.start not in counted and job.start.job not in teachers:
            counted.add(job.start)
            first = recipe.jobs[job.start.job]
            names = [stage.name for stage in first.stages]
            total += sum(stage.steps for stage in first.stages[: names.index(job.start.stage) + 1])
    return total


def columns_of(recipe: Recipe, row: str, columns: Sequence[str]) -> tuple[str, ...]:
    """The columns that can have a number for a row; only the accuracy if none can, as for a single variant.

    Example:
        >>> from flowstill.recipes.load import load_recipe
        >>> table = load_recipe("svd-table4")
        >>> columns_of(table, "vgg_student_pool", ["none", "1", "32"])
        ('none', '1')
        >>> columns_of(table, "vgg_student_pool_1", ["none", "1"])
        ('accuracy',)
    """
    return tuple(c for c in columns if _is_measured(c) or f"{row}_{c}" in recipe.jobs) or (ACCURACY,)


def _is_measured(column: str) -> bool:
    return column in MEASURED or bool(re.fullmatch(r"net\d+", column))


def is_lost(recipe: Recipe, summary: Summary, row: str) -> bool:
    """Whether a row has no number in a run because one of its jobs diverged, or a job that they build on."""
    return bool(summary.failed.keys() & {row, *jobs_of(recipe, row)})


def cell(recipe: Recipe, summary: Summary, row: str, column: str) -> float | None:
    """The number in a cell.

    Args:
        recipe: the table's recipe.
        summary: of a run of the recipe.
        row: the row.
        column: ``accuracy``, ``net1`` ..., ``average``, ``ensemble``, ``top1_error``, ``top5_error`` (in percent),
            ``total_iterations``, ``params_million``, ``flops_million`` (twice the multiply-accumulates), or a variant
            with the job ``ROW_COLUMN``.

    Returns:
        The number; None if it was not measured.
    """
    variant = f"{row}_{column}"
    if variant in recipe.jobs:
        return summary.jobs.get(variant, JobSummary()).accuracy
    jobs = jobs_of(recipe, row)
    done = [summary.jobs.get(job, JobSummary()) for job in jobs]
    first, accuracies = done[0], [one.accuracy for one in done]
    match column:
        case "total_iterations":
            return float(updates_of(recipe, jobs))
        case "ensemble":
            return summary.ensembles.get(row, Scores()).accuracy
        case "accuracy" | "average":
            measured = [accuracy for accuracy in accuracies if accuracy is not None]
            return sum(measured) / len(measured) if len(measured) == len(accuracies) else None
        case "params_million":
            return None if first.parameters is None else first.parameters / 1e6
        case "flops_million":
            return None if first.macs is None else 2 * first.macs / 1e6
        case "top1_error":
            return None if first.accuracy is None else 100 - first.accuracy
        case "top5_error":
            return None if first.top5 is None else 100 - first.top5
    if match := re.fullmatch(r"net(\d+)", column):
        number = int(match[1]) - 1
        return accuracies[number] if number < len(accuracies) else None
    return None
