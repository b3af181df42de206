"""How soon an accuracy is reached: "three times sooner" (Yim et al. 2017, Figure 3) as a number of updates."""

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
    """At how many updates a curve first reaches ``bar``, on straight lines between its points; None if it never does.

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
    """Updates on the task until shares of the final accuracy of the first job that has a curve, and of a job's own.

    The first bar is the same for all; under the second a job that ends lower may yet be the sooner where it ends.
    """
    curves = [task_curves(recipe, run, ACCURACY) for run in runs]
    name, jobs = f"{recipe.name}-reached", list(curves[0]) if curves else []
    if not jobs:
        return Table(name, "how soon", ())
    cells = []
    for job in jobs:
        for column, (whose, share) in zip(UPDATES_TO, itertools.product((jobs[0], job), SHARES), strict=True):
            found = [updates_until(*its[job], its[whose][1][-1] * share / 100) for its in curves]
            reached = tuple(steps for steps in found if steps is not None)
            cells.append(Cell(job, column, None, reached if len(reached) == len(found) else ()))
    note = (
        f"Updates on the task until so many percent of the final accuracy of {jobs[0]}, then of the row's own, are "
        "first reached, where every seed reaches them; what came before the task is not counted."
    )
    return Table(name, "how soon", tuple(cells), notes=(note,))
