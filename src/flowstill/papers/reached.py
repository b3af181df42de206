"""How fast an accuracy is reached: "three times faster" (Yim et al. 2017, Figure 3) as a number of updates."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from flowstill.papers.drawings import task_curves
from flowstill.papers.table import UPDATES_TO, Cell, Table
from flowstill.recipes.recipe import Recipe
from flowstill.reports.charts import ACCURACY
from flowstill.runs import Run

SHARES = (80, 90, 95)  # percent of a final accuracy


def updates_until(steps: Sequence[int], values: Sequence[float], bar: float) -> float | None:
    """Find when a curve first reaches ``bar``, interpolating linearly between its points.

    Args:
        steps: updates, ascending.
        values: the curve at these updates.
        bar: the value to reach.

    Returns:
        Updates; None if it never does.

    Example:
        >>> updates_until([10, 20, 30], [40.0, 60.0, 50.0], 50)
        15.0
        >>> updates_until([10, 20], [40.0, 60.0], 30), updates_until([10, 20], [40.0, 60.0], 70)
        (10.0, None)
    """
    for number, (step, value) in enumerate(zip(steps, values, strict=True)):
        if value >= bar:
            if number == 0:
                return float(step)
            before, low = steps[number - 1], values[number - 1]
            return before + (step - before) * (bar - low) / (value - low)
    return None


def reached_table(recipe: Recipe, runs: Sequence[Run]) -> Table:
    """Count updates on the task until shares of a final accuracy are reached.

    The final accuracy is first that of the first job with a curve, the same bar for all rows; then that of the row's own
    job, since a job that ends lower may still reach its own accuracy faster.

    Args:
        recipe: its jobs are the rows.
        runs: one per seed.
    """
    failed = [run.summary.failed for run in runs]
    found_curves = [task_curves(recipe, run, ACCURACY) for run in runs]
    curves = [{job: of[job] for job in of if job not in lost} for of, lost in zip(found_curves, failed, strict=True)]
    name, jobs = f"{recipe.name}-reached", [job for job in recipe.jobs if any(job in of for of in found_curves)]
    if not jobs:
        return Table(name, "updates until an accuracy", ())
    cells = []
    for job in jobs:
        for column, (reference, share) in zip(UPDATES_TO, itertools.product((jobs[0], job), SHARES), strict=True):
            both = [(of[job], of[reference][1][-1]) for of in curves if job in of and reference in of]
            found = [updates_until(*curve, last * share / 100) for curve, last in both]
            reached = tuple(steps for steps in found if steps is not None)
            lost = sum(job in one or reference in one for one in failed)
            whole = len(reached) == len(curves) - lost
            cells.append(Cell(job, column, None, reached if whole else (), lost))
    note = (
        f"Updates on the task until the given percentage of the final accuracy of {jobs[0]}, then of the row's own, is "
        "first reached; empty unless every seed that did not diverge reaches it. Updates before the task are not counted."
    )
    return Table(name, "updates until an accuracy", tuple(cells), notes=(note,))
