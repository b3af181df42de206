"""What an update costs: for the student alone, with its teacher, and with the teacher's stored knowledge."""

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

STEPS, ROUNDS = 24, 2  # updates of each kind in a round, enough that few of them are followed by an evaluation
NETWORKS = 3  # students, with one shared stage 1 or one each, compared with the same number of teachers


@dataclass(frozen=True)
class Cost:
    """Seconds per update.

    Attributes:
        plain: on the task, without a teacher.
        live: in stage 1, reading the teacher.
        stored: in stage 1, from the teacher's stored knowledge.
    """

    plain: float
    live: float
    stored: float


def measure_cost(recipe: Recipe, printed: PrintedCost, **options: Any) -> Cost:
    """Measure the median update of each kind, in turn, at the recipe's batch size, on synthetic images.

    Args:
        recipe: with the jobs that ``printed`` names.
        printed: what the paper prints.
        options: ``device`` and ``precision`` of ``train``.

    Raises:
        FlowstillError: as ``train`` does.
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
    # One view per image and hardly more images than a batch: from the second update on, everything is stored.
    augment = replace(recipe.data.augment, views=1)
    one_view = replace(recipe, data=replace(recipe.data, augment=augment), jobs=jobs, ensembles={}, together=())
    small = dry(one_view, STEPS, recipe.data.batch)
    teacher = dry(one_view, 1).jobs[taught.teacher]
    small = replace(small, jobs={**small.jobs, taught.teacher: teacher})
    times: dict[str, list[float]] = {"plain": [], "live": [], "stored": []}
    for _ in range(ROUNDS):
        for (job, _stage), seconds in step_times(small, **options).items():
            if job in times:
                times[job] += seconds[1:]  # the knowledge of all images is stored by then
    return Cost(**{job: statistics.median(seconds) for job, seconds in times.items()})


def cost_table(recipe: Recipe, printed: PrintedCost, cost: Cost, label: str = "") -> Table:
    """Tabulate seconds per 100 updates, and how much faster three students train than three teachers.

    Args:
        recipe: with the jobs that ``printed`` names.
        printed: what the paper prints.
        cost: what was measured.
        label: how it was measured, for the note below the table.
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
    for row, total in students.items():
        at_100, speedup = printed.rows.get(row, (None, None))
        cells.append(Cell(row, "seconds_per_100", at_100, (100 * seconds[row],)))
        cells.append(Cell(row, "speedup", speedup, () if total is None else (teachers / total,)))
    notes = (
        f"Median update of {recipe.data.batch} images on this machine, the kinds measured in turn. Speed-up: training time "
        "of three teachers over three students, which share stage 1 or have one each."
        + (f" ({label})" if label else ""),
    )
    return Table(f"{recipe.name}-cost", "what an update costs", tuple(cells), notes=notes)


def write_cost(recipe: Recipe, printed: PrintedCost, out: Path, label: str = "", **options: Any) -> Table:
    """Measure the cost and write ``cost.md`` and ``cost.csv`` into ``out``.

    Args:
        recipe: with the jobs that ``printed`` names.
        printed: what the paper prints.
        out: folder of the table.
        label: as for ``cost_table``.
        options: as for ``measure_cost``.
    """
    table = cost_table(recipe, printed, measure_cost(recipe, printed, **options), label)
    write_table(table, out, "cost")
    return table
