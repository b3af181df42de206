"""``reproduce``: a table of a paper, from nothing or from where it was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from flowstill.data import find_facts, find_source, open_data
from flowstill.engine.precision import Asked
from flowstill.engine.resuming import conflicts
from flowstill.errors import RecipeError
from flowstill.papers.cost import write_cost
from flowstill.papers.drawings import draw
from flowstill.papers.estimate import Estimate, estimate
from flowstill.papers.figure import write_figure
from flowstill.papers.left_open import left_open
from flowstill.papers.paired import paired_differences, write_paired
from flowstill.papers.printed import ACCURACY, Printed, PrintedCost, printed_tables
from flowstill.papers.reached import reached_table
from flowstill.papers.rows import cell, columns_of, restricted, rows_of
from flowstill.papers.table import Cell, Table, printed_cell, write_table
from flowstill.papers.teachers import is_trained, teacher_key, train_teacher, trained_by_itself, with_teachers
from flowstill.recipes.check import JobPlan, check
from flowstill.recipes.dump import plain
from flowstill.recipes.load import load_recipe
from flowstill.recipes.recipe import Recipe
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

    @property
    def cost(self) -> PrintedCost | None:
        """What the paper says of the cost of an update, if the jobs that show it are there."""
        cost = self.printed and self.printed.cost
        return cost if cost and {cost.plain, cost.taught} <= set(self.recipe.jobs) else None

    @property
    def one_teacher(self) -> bool:
        """Whether all seeds have the same teacher, or none."""
        teachers = {job.teacher for job in self.recipe.jobs.values() if job.teacher}
        return all(self.recipe.jobs[name].weights or trained_by_itself(self.whole, name) for name in teachers)

    @cached_property
    def content(self) -> str:
        """The fingerprint of the images, for which they are read."""
        return open_data(self.whole.data).fingerprint

    def teachers(self, out: Path, precision: str) -> dict[str, Path]:
        """Where the teachers lie that are trained once, for all seeds and for the other tables beside ``out``."""
        names = [name for name in self.whole.jobs if trained_by_itself(self.whole, name)]
        keys = {name: teacher_key(self.whole, name, precision, self.content) for name in names}
        return {name: out.parent / "teachers" / key for name, key in keys.items()}

    @property
    def key(self) -> str:
        """A digest of all that can be trained for one seed, whichever rows are chosen."""
        jobs = {name: {**plain(job), "about": ""} for name, job in self.whole.jobs.items()}
        data = {key: value for key, value in plain(self.whole.data).items() if key != "root"}
        text = json.dumps([data, jobs, plain(self.whole.ensembles)], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Part:
    """One seed's run: where it lies, what it trains, with the teachers' weights, and which of these jobs are left."""

    path: Path
    recipe: Recipe
    left: tuple[str, ...]


def plan_table(
    table: str,
    *,
    scale: float = 1.0,
    seeds: int = 1,
    rows: Sequence[str] = (),
    data_root: str | Path | None = None,
    data: str | None = None,
    set: Sequence[str] = (),
) -> Plan:
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


def check_plan(
    plan: Plan, out: Path, *, precision: Asked = "auto", **options: Any
) -> tuple[dict[str, JobPlan], dict[str, int], Estimate]:
    """The jobs' networks and pairs, how often each is still to be trained into ``out``, and what once will take.

    options: of ``estimate``. Raises: FlowstillError.
    """
    if not plan.recipe.jobs:
        return {}, {}, Estimate({}, {}, 0)
    find_source(plan.recipe.data)  # says what is missing, without opening a file
    facts = find_facts(plan.recipe.data)
    check(plan.recipe, facts.shape, facts.classes)
    left = jobs_left(plan, out, precision)
    recipe = restricted(plan.whole, left) if left else plan.recipe
    plans = check(recipe, facts.shape, facts.classes)
    return plans, left, estimate(recipe, plans, precision=precision, **options) if left else Estimate({}, {}, 0)


def jobs_left(plan: Plan, out: Path, precision: Asked = "auto") -> dict[str, int]:
    """How often each job is still to be trained: for each seed that lacks it, a teacher that serves all of them once."""
    folders = plan.teachers(out, precision)
    parts = [part_of(plan, seed, out, precision, folders) for seed in plan.seeds]
    wanted = {name for part in parts if part.left for name in part.recipe.jobs}
    left = {name: int(not is_trained(folder)) for name, folder in folders.items() if name in wanted}
    for part in parts:
        left |= {name: left.get(name, 0) + 1 for name in part.left if name not in folders}
    return {name: left[name] for name in plan.whole.jobs if left.get(name)}


def part_of(plan: Plan, seed: int, out: Path, precision: Asked, folders: Mapping[str, Path]) -> Part:
    """A seed's part: in the run folder that its rows fit into, beside what is there, or else in a new one."""

    def recipe(names: Iterable[str]) -> Recipe:
        return replace(with_teachers(restricted(plan.whole, names), folders), seed=seed)

    for path in sorted(out.glob(f"seed-{seed}-*")):
        if is_run(path):
            there = RunWriter(path).progress()
            kept = Run.open(path).recipe["run"]["precision"]["dtype"]
            if set(there.begun) <= plan.whole.jobs.keys() and precision in ("auto", kept):
                both = recipe(dict.fromkeys([*plan.recipe.jobs, *there.begun]))
                if not any(conflicts(both, path)):
                    return Part(path, both, tuple(name for name in both.jobs if name not in there.done))
    return Part(out / f"seed-{seed}-{plan.key}-{precision}", its := recipe(plan.recipe.jobs), tuple(its.jobs))


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
    folders = plan.teachers(out, precision)
    parts = [part_of(plan, seed, out, precision, folders) for seed in plan.seeds]
    for name, folder in folders.items():
        if any(name in part.recipe.jobs for part in parts if part.left):
            say(f"{name}: {'is there' if is_trained(folder) else 'trained once for all tables'}, in {folder}")
            train_teacher(plan.whole, name, folder, precision=precision, **options)
    runs = []
    for seed in plan.seeds:
        part = part_of(plan, seed, out, precision, folders)
        say(
            f"seed {seed}: {('goes on in' if part.left else 'is there, in') if is_run(part.path) else 'into'} {part.path}"
        )
        runs.append(train(part.recipe, part.path, resume=True, precision=precision, **options))
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
    for name in ("reached.md", "reached.csv", "paired.md", "paired.csv"):  # of other rows or seeds than these
        (out / name).unlink(missing_ok=True)
    if plan.recipe.figure:
        draw(plan.recipe, runs, out)
    if plan.recipe.figure == "curves" and (reached := reached_table(plan.recipe, runs)).cells:
        write_table(reached, out, "reached")
    done = dict(zip(plan.seeds, (run.summary for run in runs), strict=False))
    if len(runs) > 1 and (pairs := paired_differences(plan.whole, plan.rows, done)):
        write_paired(plan.whole, pairs, tuple(done), out, one_teacher=plan.one_teacher)
    if table.cells:
        write_table(table, out)
        write_figure(table, out)
    return table


def make_table(plan: Plan, runs: Sequence[Run]) -> Table:
    """The rows, each seed's run giving a number for each cell."""
    named = plan.printed.columns if plan.printed else ()
    own = {row: columns_of(plan.whole, row, named) for row in plan.rows}
    columns = [name for name in dict.fromkeys((*named, ACCURACY)) if any(name in its for its in own.values())]
    cells = []
    for row in plan.rows:
        for column in columns:
            values = [cell(plan.recipe, run.summary, row, column) for run in runs if column in own[row]]
            there = tuple(value for value in values if value is not None)
            cells.append(Cell(row, column, printed_cell(plan.printed, row, column), there))
    printed = plan.printed
    return Table(
        plan.recipe.name,
        printed.title if printed else plan.recipe.about,
        tuple(cells),
        {row: left_open(plan.recipe, row) for row in plan.rows},
        notes(plan, len(runs)),
    )


def notes(plan: Plan, seeds: int) -> tuple[str, ...]:
    """Under which conditions the numbers came about."""
    data, whose = plan.recipe.data, "paper's" if plan.printed else "recipe's"
    taught = any(job.teacher for job in plan.recipe.jobs.values())
    whom = f", {'one teacher for all' if plan.one_teacher else 'each with its own teacher'}" if taught else ""
    said = [f"Schedules at {plan.scale:g} of the {whose}; mean over {seeds} seed{'s' if seeds > 1 else ''}{whom}."]
    if plan.stand_in:
        said.append(f"The images are those of {plan.stand_in}, which stands in for the paper's set.")
    if data.labels:
        said.append(f"The task sees {data.labels} labels.")
    return tuple(said)
