"""How soon an accuracy is reached: "three times sooner" (Yim et al. 2017, Figure 3) as a number of updates."""

from __future__ import annotations

from collections.abc import Sequence

from flowstill.experiments.drawings import task_curves
from flowstill.experiments.table import Cell, Table
from flowstill.recipes.schema import Recipe
from flowstill.reports.charts import ACCURACY
from flowstill.runs import Run

SHARES = (80, 90, 95)  # percent of the first job's final accuracy


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
    """Updates on the task until shares of the final accuracy of the first job that has a curve, the same bar for all."""
    curves = [task_curves(recipe, run, ACCURACY) for run in runs]
    jobs = list(curves[0]) if curves else []
    cells = []
    for job in jobs:
        for share in SHARES:
            bars = [its[jobs[0]][1][-1] * share / 100 for its in curves]
            found = [updates_until(*its[job], bar) for its, bar in zip(curves, bars, strict=True)]
            reached = tuple(steps for steps in found if steps is not None)
            cells.append(Cell(job, f"updates_to_{share}", None, reached if len(reached) == len(found) else ()))
    notes = (f"Updates on the task until so many percent of the final accuracy of {jobs[0]} are first reached, where "
             "every seed reaches them; what came before the task is not counted.",) if jobs else ()  # fmt: skip
    return Table(f"{recipe.name}-reached", "how soon", tuple(cells), notes=notes)
