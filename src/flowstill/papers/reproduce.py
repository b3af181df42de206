"""``reproduce``: train what a paper's table still lacks, and write the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowstill.engine.precision import Asked
from flowstill.papers.cost import write_cost
from flowstill.papers.drawings import draw
from flowstill.papers.figure import write_figure
from flowstill.papers.left_open import left_open
from flowstill.papers.paired import paired_differences, write_paired
from flowstill.papers.plan import Part, Plan, parts_of
from flowstill.papers.printed import ACCURACY
from flowstill.papers.reached import reached_table
from flowstill.papers.rows import cell, columns_of, is_lost, restricted
from flowstill.papers.table import Cell, Table, printed_cell, write_table
from flowstill.papers.teachers import is_trained, lost_jobs, train_teacher
from flowstill.runs import JobSummary, Run, Summary, is_run

COST = "cost.md"


def reproduce(
    plan: Plan,
    out: str | Path,
    *,
    precision: Asked = "auto",
    parts: Sequence[Part] | None = None,
    say: Callable[[str], None] = print,
    **options: Any,
) -> Table:
    """Train what is still missing from a plan and write its table. Interrupted runs are continued.

    Other rows of the same recipe are added to the existing run folders: jobs that they share are not trained again,
    and jobs that an earlier call left unfinished are finished.

    Teachers are in the folder ``teachers`` beside ``out``, each named after a digest of what its weights depend on, and
    serve every table there. ``out`` gets:

    - a run folder for each seed;
    - ``table.md``, ``table.csv``, ``table.png`` and ``table.svg``;
    - ``figure.png`` and ``figure.svg`` if the recipe has a figure, and for curves ``reached.md`` and ``reached.csv``;
    - ``paired.md`` and ``paired.csv`` for two seeds or more, if a network is trained both taught and alone;
    - ``cost.md`` and ``cost.csv`` if the paper prints what an update costs, measured once.

    Args:
        plan: the plan.
        out: folder of the table.
        precision: as for ``train``.
        parts: what ``check_plan`` found for the same plan, folder and precision, if it was called.
        say: called with a line about each step.
        options: ``device``, ``devices``, ``progress`` and ``on_step`` of ``train``.

    Returns:
        The table.

    Raises:
        FlowstillError: bad input.
        KeyboardInterrupt: once the state is saved.
    """
    from flowstill.engine import train

    out = Path(out)
    if not plan.recipe.jobs:
        return write(plan, [], out)
    folders = plan.teachers(out, precision)
    parts = parts_of(plan, out, precision) if parts is None else parts
    for name, folder in folders.items():
        if any(name in part.recipe.jobs for part in parts if part.left):
            say(f"{name}: {'already trained' if is_trained(folder) else 'training once for all tables'}, in {folder}")
            train_teacher(plan.whole, name, folder, precision=precision, **options)
    lost = lost_jobs(plan.whole, folders)
    runs = []
    for part in parts:
        jobs = [name for name in part.recipe.jobs if name not in lost]
        if not jobs:
            say(f"seed {part.seed}: nothing to train without {', '.join(lost)}")
            continue
        state = ("continuing" if part.left else "already trained") if is_run(part.path) else "training"
        say(f"seed {part.seed}: {state}, in {part.path}")
        recipe = restricted(part.recipe, jobs)
        runs.append(train(recipe, part.path, resume=True, precision=precision, **options))
        write(plan, runs, out, lost)
    if plan.cost:
        device = options.get("device", "auto")
        label = f"device {device}, precision {precision}, {plan.key}"
        if not (out / COST).exists() or label not in (out / COST).read_text(encoding="utf-8"):
            say("measuring what an update costs")
            write_cost(plan.recipe, plan.cost, out, label, device=device, precision=precision)
    return write(plan, runs, out, lost)


def write(plan: Plan, runs: Sequence[Run], out: Path, lost: Mapping[str, str] | None = None) -> Table:
    """Write the table of these runs, one per seed, and the recipe's figure into ``out``.

    Args:
        plan: the plan.
        runs: of its seeds.
        out: folder of the table.
        lost: jobs that are in none of the runs because their teacher diverged -> why.
    """
    summaries = _summaries(plan, runs, lost or {})
    table = make_table(plan, summaries)
    for name in ("reached.md", "reached.csv", "paired.md", "paired.csv"):  # may belong to other rows or seeds
        (out / name).unlink(missing_ok=True)
    if plan.recipe.figure and (runs or not plan.recipe.jobs):
        draw(plan.recipe, runs, out)
    if plan.recipe.figure == "curves" and (reached := reached_table(plan.recipe, runs)).cells:
        write_table(reached, out, "reached")
    if len(runs) > 1 and (pairs := paired_differences(plan.whole, plan.rows, summaries)):
        write_paired(plan.whole, pairs, tuple(summaries), out, one_teacher=plan.one_teacher)
    if table.cells:
        write_table(table, out)
        write_figure(table, out)
    return table


def _summaries(plan: Plan, runs: Sequence[Run], lost: Mapping[str, str]) -> dict[int, Summary]:
    """Each seed's summary, with the jobs that were lost before it began."""
    missing = {name: JobSummary(not_run=why) for name, why in lost.items() if name in plan.recipe.jobs}
    if not runs and missing:
        return {seed: Summary(jobs=missing) for seed in plan.seeds}
    found = zip(plan.seeds, (run.summary for run in runs), strict=False)
    return {seed: replace(summary, jobs=missing | summary.jobs) for seed, summary in found}


def make_table(plan: Plan, summaries: Mapping[int, Summary]) -> Table:
    """The plan's rows, with one number per seed in each cell."""
    printed = plan.printed
    named = printed.columns if printed else ()
    columns_by_row = {row: columns_of(plan.whole, row, named) for row in plan.rows}
    used = {column for columns in columns_by_row.values() for column in columns}
    cells = []
    for row in plan.rows:
        for column in (name for name in dict.fromkeys((*named, ACCURACY)) if name in used):
            seen = summaries.values() if column in columns_by_row[row] else ()
            values = [cell(plan.recipe, summary, row, column) for summary in seen]
            measured = tuple(value for value in values if value is not None)
            lost = sum(
                value is None and is_lost(plan.recipe, one, row) for value, one in zip(values, seen, strict=True)
            )
            cells.append(Cell(row, column, printed_cell(printed, row, column), measured, lost))
    return Table(
        plan.recipe.name,
        printed.title if printed else plan.recipe.about,
        tuple(cells),
        {row: left_open(plan.recipe, row) for row in plan.rows},
        notes(plan, len(summaries)),
        {f"{job}, seed {seed}": why for seed, summary in summaries.items() for job, why in summary.failed.items()},
    )


def notes(plan: Plan, seeds: int) -> tuple[str, ...]:
    """Notes on how the numbers were measured."""
    data, source = plan.recipe.data, "paper's" if plan.printed else "recipe's"
    taught = any(job.teacher for job in plan.recipe.jobs.values())
    teacher = f", {'one teacher for all' if plan.one_teacher else 'each with its own teacher'}" if taught else ""
    lines = [f"Schedules at {plan.scale:g} of the {source}; mean over {seeds} seed{'s' if seeds > 1 else ''}{teacher}."]
    if plan.stand_in:
        lines.append(f"Images: {plan.stand_in}, in place of the paper's data set.")
    if data.labels:
        lines.append(f"The task uses {data.labels} labels.")
    return tuple(lines)
