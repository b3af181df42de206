"""``reproduce``: a table of a paper, from nothing or from where it was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowstill.data import find_facts, find_source, open_data
from flowstill.engine.precision import Asked
from flowstill.errors import RecipeError
from flowstill.experiments.cost import write_cost
from flowstill.experiments.drawings import draw
from flowstill.experiments.estimate import Estimate, estimate
from flowstill.experiments.figure import write_figure
from flowstill.experiments.left_open import left_open
from flowstill.experiments.paired import paired_differences, write_paired
from flowstill.experiments.printed import ACCURACY, Printed, PrintedCost, printed_tables
from flowstill.experiments.reached import reached_table
from flowstill.experiments.rows import cell, restricted, rows_of
from flowstill.experiments.table import Cell, Table, printed_cell, write_table
from flowstill.experiments.teachers import teacher_key, trained_by_itself, with_teachers
from flowstill.recipes.check import JobPlan, check
from flowstill.recipes.dump import plain
from flowstill.recipes.load import load_recipe
from flowstill.recipes.schema import Recipe
from flowstill.runs import Run, RunWriter, is_run

COST = "cost.md"


@dataclass(frozen=True)
class Plan:
    """What a table will take. rows: in order. seeds: each trains the rows once; teachers are trained once for all.

    whole: the recipe. recipe: with the rows' jobs alone. stand_in: the data set that takes the place of the paper's, or
    nothing.
    """

    whole: Recipe
    recipe: Recipe
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    scale: float
    printed: Printed | None
    stand_in: str = ""

    def teachers_of(self, recipe: Recipe) -> tuple[str, ...]:
        """Those of a recipe's jobs that are trained once, for all seeds and for other tables."""
        return tuple(name for name in recipe.jobs if trained_by_itself(self.whole, name))

    @property
    def cost(self) -> PrintedCost | None:
        """What the paper says of the cost of an update, if the jobs that show it are there."""
        cost = self.printed and self.printed.cost
        return cost if cost and {cost.plain, cost.taught} <= set(self.recipe.jobs) else None

    def folder(self, out: Path, seed: int) -> Path:
        """Where a seed's run lies."""
        return out / f"seed-{seed}-{self.key}"

    @property
    def key(self) -> str:
        """A digest of all that can be trained for one seed, whichever rows are chosen."""
        jobs = {name: plain(job) for name, job in self.whole.jobs.items()}
        data = {key: value for key, value in plain(self.whole.data).items() if key != "root"}
        text = json.dumps([data, jobs, plain(self.whole.ensembles)], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def plan_table(
    table: str, *, scale: float = 1.0, seeds: int = 1, rows: Sequence[str] = (), data_root: str | Path | None = None,
    data: str | None = None, set: Sequence[str] = (),
) -> Plan:  # fmt: skip
    """What ``reproduce`` will do for these arguments. Raises: FlowstillError naming what is wrong."""
    if seeds < 1:
        raise RecipeError(f"--seeds {seeds}: at least one.")
    whole = load_recipe(table, scale=scale, data_root=data_root, set=[*set, *([f"data.name={data}"] if data else [])])
    printed = printed_tables().get(whole.name)
    chosen = tuple(rows) or tuple(printed.rows if printed else rows_of(whole))
    paper_set = load_recipe(table).data.name
    stand_in = whole.data.name if whole.data.name != paper_set else ""
    first = whole.seed
    return Plan(whole, restricted(whole, chosen), chosen, tuple(range(first, first + seeds)), scale, printed, stand_in)


def check_plan(plan: Plan, out: Path, **options: Any) -> tuple[dict[str, JobPlan], dict[str, int], Estimate]:
    """The jobs' networks and pairs, how often each is still to be trained into ``out``, and what once will take.

    options: of ``estimate``. Raises: FlowstillError.
    """
    if not plan.recipe.jobs:
        return {}, {}, Estimate({}, {}, 0)
    find_source(plan.recipe.data)  # says what is missing, without opening a file
    facts = find_facts(plan.recipe.data)
    plans = check(plan.recipe, facts.shape, facts.classes)
    left = jobs_left(plan, out)
    return plans, left, estimate(restricted(plan.recipe, left), plans, **options) if left else Estimate({}, {}, 0)


def jobs_left(plan: Plan, out: Path) -> dict[str, int]:
    """In how many of the seeds' runs each job is still to be trained; a teacher that serves all of them once."""
    paths = [plan.folder(out, seed) for seed in plan.seeds]
    done = [Run.open(path).summary.get("jobs", {}) if is_run(path) else {} for path in paths]
    missing = {name: sum(name not in jobs for jobs in done) for name in plan.recipe.jobs}
    once = plan.teachers_of(plan.recipe)
    left = {name: count if name not in once else int(count == len(done)) for name, count in missing.items()}
    return {name: count for name, count in left.items() if count}


def reproduce(
    plan: Plan, out: str | Path, *, precision: Asked = "auto", say: Callable[[str], None] = print, **options: Any
) -> Table:
    """Train what is missing of a plan and write the table; what was stopped goes on where it was.

    Other rows of the same recipe are added to the run folders that are there: what they have in common is not trained
    again, and what an earlier call left half done is finished.

    Teachers lie beside ``out`` in a folder ``teachers``, each named by what its weights depend on, and serve every
    table there. ``out`` gets a run folder for each seed, ``table.md``, ``table.csv``, ``table.png`` and ``table.svg``, and
    where the recipe says so ``figure.png`` and ``figure.svg``, for curves also ``reached.md`` and ``.csv``. Two seeds or
    more give ``paired.md`` and ``.csv``, where a network is taught and trained alone as well.
    Where the paper says what an update costs, that is measured once, into ``cost.md`` and ``cost.csv``.

    options: ``device``, ``devices``, ``progress`` of ``train``. say: told of each step.
    Returns: the table. Raises: FlowstillError; KeyboardInterrupt once the state is saved.
    """
    from flowstill.engine import train

    out = Path(out)
    if not plan.recipe.jobs:
        return write(plan, [], out)
    paths = {seed: plan.folder(out, seed) for seed in plan.seeds}
    jobs = {
        seed: (*plan.recipe.jobs, *(RunWriter(path).begun() if is_run(path) else ())) for seed, path in paths.items()
    }
    recipe = restricted(plan.whole, dict.fromkeys(name for names in jobs.values() for name in names))
    teachers = plan.teachers_of(recipe)
    content = open_data(recipe.data).fingerprint if teachers else ""
    folders = {name: out.parent / "teachers" / teacher_key(recipe, name, precision, content) for name in teachers}
    for name, there in folders.items():
        done = is_run(there) and Run.open(there).finished
        say(f"{name}: {'is there' if done else 'trained once for all tables'}, in {there}")
    recipe = with_teachers(recipe, folders, precision=precision, **options)
    runs = []
    for seed, path in paths.items():
        say(f"seed {seed}: {'goes on in' if is_run(path) else 'into'} {path}")
        its = replace(restricted(recipe, jobs[seed]), seed=seed)
        runs.append(train(its, path, resume=True, precision=precision, **options))
        write(plan, runs, out)
    if plan.cost:
        device = options.get("device", "auto")
        label = f"device {device}, precision {precision}, {plan.key}"
        if not (out / COST).exists() or label not in (out / COST).read_text(encoding="utf-8"):
            say("measuring what an update costs")
            write_cost(plan.recipe, plan.cost, out, label, device=device, precision=precision)
    return write(plan, runs, out)


def write(plan: Plan, runs: Sequence[Run], out: Path) -> Table:
    """The table of these runs, one for each seed, and the recipe's figure into ``out``; returns the table."""
    table = make_table(plan, runs)
    if plan.recipe.figure:
        draw(plan.recipe, runs, out)
    if plan.recipe.figure == "curves" and (reached := reached_table(plan.recipe, runs)).cells:
        write_table(reached, out, "reached")
    done = dict(zip(plan.seeds, (run.summary for run in runs), strict=False))
    if len(runs) > 1 and (pairs := paired_differences(plan.recipe, plan.rows, done)):
        write_paired(plan.recipe, pairs, tuple(done), out)
    if table.cells:
        write_table(table, out)
        write_figure(table, out)
    return table


def make_table(plan: Plan, runs: Sequence[Run]) -> Table:
    """The rows, each seed's run giving a number for each cell."""
    columns = plan.printed.columns if plan.printed else (ACCURACY,)
    cells = []
    for row in plan.rows:
        for column in columns:
            values = [cell(plan.recipe, run.summary, row, column) for run in runs]
            there = tuple(value for value in values if value is not None)
            cells.append(Cell(row, column, printed_cell(plan.printed, row, column), there))
    printed = plan.printed
    return Table(plan.recipe.name, printed.title if printed else plan.recipe.about, tuple(cells),
                 {row: left_open(plan.recipe, row) for row in plan.rows}, notes(plan, len(runs)))  # fmt: skip


def notes(plan: Plan, seeds: int) -> tuple[str, ...]:
    """Under which conditions the numbers came about."""
    data, whose = plan.recipe.data, "paper's" if plan.printed else "recipe's"
    said = [
        f"Schedules at {plan.scale:g} of the {whose}; mean over {seeds} seed{'s' if seeds > 1 else ''}, one teacher for all."
    ]
    if plan.stand_in:
        said.append(f"The images are those of {plan.stand_in}, which stands in for the paper's set.")
    if data.labels:
        said.append(f"The task sees {data.labels} labels.")
    return tuple(said)
