"""What an update costs: the student alone, beside its teacher, and beside what is stored of its teacher."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowstill.papers.estimate import step_times
from flowstill.papers.printed import PrintedCost
from flowstill.papers.table import Cell, Table, write_table
from flowstill.recipes.dry import dry
from flowstill.recipes.recipe import Job, Recipe
from flowstill.transfer.stages import Stored

STEPS, ROUNDS = 24, 2  # updates of each kind in a round, so many that most are not followed by a look at test images
NETWORKS = 3  # students, of one stage 1 or of one each, beside as many teachers


@dataclass(frozen=True)
class Cost:
    """Seconds of an update: ``plain`` on the labels, and of stage 1, its teacher ``live`` or ``stored``."""

    plain: float
    live: float
    stored: float


def measure_cost(recipe: Recipe, printed: PrintedCost, **options: Any) -> Cost:
    """The median update of each kind, measured in turn at the recipe's batch, on made-up images seen before.

    options: ``device``, ``precision`` of ``train``. Raises: FlowstillError as ``train`` does.
    """
    student, taught = recipe.jobs[printed.plain], recipe.jobs[printed.taught]
    assert taught.teacher is not None
    (first,), task = taught.stages, student.stages[-1]
    jobs = {
        taught.teacher: recipe.jobs[taught.teacher],
        "plain": Job(student.network, stages=(task,)),
        "live": replace(taught, stages=(first,)),
        "stored": replace(taught, stages=(replace(first, knowledge=Stored()),)),
    }
    # One view of each image, and little more of them than a batch: from the second update on all is stored.
    augment = replace(recipe.data.augment, views=1)
    one_view = replace(recipe, data=replace(recipe.data, augment=augment), jobs=jobs, ensembles={}, together=())
    small = dry(one_view, STEPS, recipe.data.batch)
    teacher = dry(one_view, 1).jobs[taught.teacher]
    small = replace(small, jobs={**small.jobs, taught.teacher: teacher})
    taken: dict[str, list[float]] = {"plain": [], "live": [], "stored": []}
    for _ in range(ROUNDS):
        for (job, _stage), seconds in step_times(small, **options).items():
            if job in taken:
                taken[job] += seconds[1:]  # by then the knowledge of all images is stored
    return Cost(**{job: statistics.median(seconds) for job, seconds in taken.items()})


def cost_table(recipe: Recipe, printed: PrintedCost, cost: Cost, label: str = "") -> Table:
    """Seconds for 100 updates, and how much sooner three students are trained than three teachers.

    label: how it was measured, for the note below.
    """
    student, taught = recipe.jobs[printed.plain], recipe.jobs[printed.taught]
    assert taught.teacher is not None
    first, task = taught.stages[0].steps, student.stages[-1].steps
    teachers = NETWORKS * sum(stage.steps for stage in recipe.jobs[taught.teacher].stages) * cost.plain
    students = {
        "plain": None,
        "stage1_on_the_fly": first * cost.live + NETWORKS * task * cost.plain,
        "stage1_stored_fsp": first * cost.stored + NETWORKS * task * cost.plain,
        "stage1_stored_fsp_for_each": NETWORKS * (first * cost.stored + task * cost.plain),
    }
    seconds = dict(zip(students, (cost.plain, cost.live, cost.stored, cost.stored), strict=True))
    cells = []
    for row, whole in students.items():
        at_100, speedup = printed.rows.get(row, (None, None))
        cells.append(Cell(row, "seconds_per_100", at_100, (100 * seconds[row],)))
        cells.append(Cell(row, "speedup", speedup, () if whole is None else (teachers / whole,)))
    notes = (
        f"Updates of {recipe.data.batch} images on this machine, each kind in turn, the median. Speed-up: three teachers' "
        "time over that of three students, which share stage 1 or have one each." + (f" ({label})" if label else ""),
    )
    return Table(f"{recipe.name}-cost", "what an update costs", tuple(cells), notes=notes)


def write_cost(recipe: Recipe, printed: PrintedCost, out: Path, label: str = "", **options: Any) -> Table:
    """Measure, and write ``cost.md`` and ``.csv`` into ``out``. label: of ``cost_table``. options: of ``measure_cost``."""
    table = cost_table(recipe, printed, measure_cost(recipe, printed, **options), label)
    write_table(table, out, "cost")
    return table
