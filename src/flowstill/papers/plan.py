"""What ``reproduce`` will do: which rows and seeds, in which run folders, and what is left to train."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from flowstill.data import find_facts, find_source, open_data
from flowstill.engine.precision import Asked, needing_float32
from flowstill.engine.resuming import conflicts, to_repeat
from flowstill.errors import RecipeError, option
from flowstill.papers.estimate import Estimate, estimate
from flowstill.papers.printed import Printed, PrintedCost, printed_tables
from flowstill.papers.rows import restricted, rows_of
from flowstill.papers.teachers import is_trained, lost_jobs, teacher_key, trained_by_itself, with_teachers
from flowstill.recipes.check import JobPlan, check
from flowstill.recipes.dump import plain
from flowstill.recipes.load import load_recipe
from flowstill.recipes.recipe import Recipe
from flowstill.runs import Run, RunWriter, is_run


@dataclass(frozen=True)
class Plan:
    """A table to reproduce.

    Attributes:
        whole: the table's recipe.
        recipe: the same, reduced to the jobs of the chosen rows.
        rows: the chosen rows, in order.
        seeds: each trains the rows once; teachers are trained once for all seeds.
        scale: factor on all schedules.
        printed: the paper's numbers; None if the recipe is not for a printed table.
        stand_in: name of the data set used instead of the paper's; empty for the paper's own.
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
        """What the paper says about the cost of an update; None if it says nothing or the jobs are not chosen."""
        cost = self.printed and self.printed.cost
        return cost if cost and {cost.plain, cost.taught} <= set(self.recipe.jobs) else None

    @property
    def one_teacher(self) -> bool:
        """Whether all seeds share their teacher, or have none."""
        teachers = {job.teacher for job in self.recipe.jobs.values() if job.teacher}
        return all(self.recipe.jobs[name].weights or trained_by_itself(self.whole, name) for name in teachers)

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the images; reads them."""
        return open_data(self.whole.data).fingerprint

    def teachers(self, out: Path, precision: str) -> dict[str, Path]:
        """Job -> run folder of each teacher that is trained once for all seeds and for all tables beside ``out``."""
        names = [name for name in self.whole.jobs if trained_by_itself(self.whole, name)]
        keys = {name: teacher_key(self.whole, name, precision, self.fingerprint) for name in names}
        return {name: out.parent / "teachers" / key for name, key in keys.items()}

    @property
    def key(self) -> str:
        """A digest of everything that can be trained for one seed, whichever rows are chosen."""
        jobs = {name: {**plain(job), "about": ""} for name, job in self.whole.jobs.items()}
        data = {key: value for key, value in plain(self.whole.data).items() if key not in ("root", "reader")}
        text = json.dumps([data, jobs, plain(self.whole.ensembles)], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Part:
    """One seed of a plan.

    Attributes:
        seed: the seed.
        path: its run folder.
        recipe: what the run trains, with the teachers' weights as files.
        left: the jobs still to be trained.
    """

    seed: int
    path: Path
    recipe: Recipe
    left: tuple[str, ...]


@dataclass(frozen=True)
class Work:
    """What a plan will take.

    Attributes:
        networks: job -> its network, pairs and terms.
        left: job -> how many times it is still to be trained, over all seeds.
        estimate: what training each job once will take.
        parts: of each seed, for ``reproduce``.
    """

    networks: dict[str, JobPlan]
    left: dict[str, int]
    estimate: Estimate
    parts: tuple[Part, ...]


def plan_table(
    table: str,
    *,
    scale: float = 1.0,
    seeds: int = 1,
    rows: Sequence[str] = (),
    data_root: str | Path | None = None,
    data: str | None = None,
    set: Sequence[str] = (),
    trust_code: bool = False,
) -> Plan:
    """Plan a table.

    Args:
        table: name of a packaged recipe, or the path of a YAML file.
        scale: factor on all schedules.
        seeds: how many times each row is trained.
        rows: the rows to train; by default all that the paper prints, with their controls.
        data_root: folder of the data sets.
        data: name of a data set to use in place of the paper's.
        set: changes to the recipe, as ``KEY=VALUE``.
        trust_code: allow the Python files that the recipe's file names; their code runs.

    Raises:
        FlowstillError: an argument is invalid.
    """
    if seeds < 1:
        raise RecipeError(f"{option('seeds', seeds)}: expected at least 1.")
    changes = [*set, *([f"data.name={json.dumps(data)}"] if data else [])]
    whole = load_recipe(table, scale=scale, data_root=data_root, set=changes, trust_code=trust_code)
    printed = printed_tables().get(whole.name)
    chosen = tuple(rows) or ((*printed.rows, *printed.controls) if printed else rows_of(whole))
    original = load_recipe(table, trust_code=trust_code).data.name
    stand_in = whole.data.name if whole.data.name != original else ""
    first = whole.seed
    return Plan(whole, restricted(whole, chosen), chosen, tuple(range(first, first + seeds)), scale, printed, stand_in)


def check_plan(plan: Plan, out: Path, *, precision: Asked = "auto", **options: Any) -> Work:
    """Check a plan and estimate what it will take.

    Args:
        plan: the plan.
        out: folder of the table.
        precision: as for ``train``.
        options: ``device`` of ``train``.

    Raises:
        FlowstillError: the plan cannot be run.
    """
    if not plan.recipe.jobs:
        return Work({}, {}, Estimate({}, {}, 0), ())
    find_source(plan.recipe.data)  # says what is missing, without opening a file
    facts = find_facts(plan.recipe.data)
    check(plan.recipe, facts.shape, facts.classes)
    parts = parts_of(plan, out, precision)
    left = jobs_left(plan, out, precision, parts)
    recipe = restricted(plan.whole, left) if left else plan.recipe
    networks = check(recipe, facts.shape, facts.classes)
    takes = estimate(recipe, networks, precision=precision, **options) if left else Estimate({}, {}, 0)
    return Work(networks, left, takes, parts)


def jobs_left(plan: Plan, out: Path, precision: Asked = "auto", parts: Sequence[Part] | None = None) -> dict[str, int]:
    """Count how many times each job is still to be trained.

    A job counts once for each seed that lacks it; a teacher that serves all seeds counts once.

    Args:
        plan: the plan.
        out: folder of the table.
        precision: as for ``train``.
        parts: what ``parts_of`` gave for the same arguments.
    """
    folders = plan.teachers(out, precision)
    parts = parts_of(plan, out, precision) if parts is None else parts
    wanted = {name for part in parts if part.left for name in part.recipe.jobs}
    left = {name: int(not is_trained(folder)) for name, folder in folders.items() if name in wanted}
    for part in parts:
        left |= {name: left.get(name, 0) + 1 for name in part.left if name not in folders}
    lost = lost_jobs(plan.whole, folders)
    return {name: left[name] for name in plan.whole.jobs if left.get(name) and name not in lost}


def parts_of(plan: Plan, out: Path, precision: Asked) -> tuple[Part, ...]:
    """The part of each seed."""
    folders = plan.teachers(out, precision)
    return tuple(part_of(plan, seed, out, precision, folders) for seed in plan.seeds)


def part_of(plan: Plan, seed: int, out: Path, precision: Asked, folders: Mapping[str, Path]) -> Part:
    """A seed's part: in an existing run folder if its rows fit there, or else in a new one."""

    def recipe(names: Iterable[str]) -> Recipe:
        return replace(with_teachers(restricted(plan.whole, names), folders), seed=seed)

    for path in sorted(out.glob(f"seed-{seed}-*")):
        if is_run(path):
            progress = RunWriter(path).progress()
            used = Run.open(path).fact(str, "precision", "dtype")
            if set(progress.begun) <= plan.whole.jobs.keys() and precision in ("auto", used):
                both = recipe(dict.fromkeys([*plan.recipe.jobs, *progress.begun]))
                spoiled = precision == "auto" and used == "bf16" and needing_float32(both, progress.done)
                if not spoiled and not any(conflicts(both, path)):
                    done = set(progress.done) - to_repeat(both, path)
                    return Part(seed, path, both, tuple(name for name in both.jobs if name not in done))
    new = recipe(plan.recipe.jobs)
    return Part(seed, out / f"seed-{seed}-{plan.key}-{precision}", new, tuple(new.jobs))
