"""Recipes by name or from YAML files: read, changed by options, checked, with every problem named by file and line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from flowstill.errors import RecipeError, did_you_mean
from flowstill.nets import is_object, needs_trust
from flowstill.recipes.dump import dump_recipe
from flowstill.recipes.overrides import override, put
from flowstill.recipes.places import Document, Place, read_yaml
from flowstill.recipes.recipe import Recipe, Stage
from flowstill.recipes.scaling import scaled
from flowstill.recipes.shorthand import SHORTHAND, expand, jobs_as_mappings
from flowstill.schema import validated
from flowstill.schema.code import import_code, located
from flowstill.schema.problems import Loc, Problem, Problems
from flowstill.transfer.knowledge import Knowledge
from flowstill.transfer.stages import PLAYER_KEYS, UPDATE_KEYS

__all__ = ["dump_recipe", "load_recipe", "recipe_names", "scaled"]

MOST_SCALE = 1000
_STAGE_SHORT = (*PLAYER_KEYS, *UPDATE_KEYS)


def recipe_names() -> dict[str, str]:
    """The recipes that come with the package: name -> what it is about."""
    return {name: str(_read(file, file.name).data.get("about", "")) for name, file in sorted(_packaged().items())}


def load_recipe(
    source: str | Path | Recipe,
    *,
    set: Sequence[str] = (),
    scale: float = 1.0,
    seed: int | None = None,
    data_root: str | Path | None = None,
    trust_code: bool = False,
) -> Recipe:
    """Read a recipe that comes with the package, a YAML file, or the ``recipe.yaml`` of a run; or change a Recipe.

    Args:
        source: a packaged recipe's name, a path, or a Recipe, whose ``uses`` are trusted.
        set: changes such as ``data.batch=64`` or ``teacher.weights=FILE``, applied in order.
        scale: multiplies every count of steps (``scaled``).
        seed: instead of the recipe's.
        data_root: where data sets lie, instead of the recipe's ``data.root``.
        trust_code: allow Python files that the recipe ``uses`` or takes networks from; their code runs.

    Raises:
        RecipeError: with all problems, a line for each: ``recipe.yaml:12: jobs.student.seed: expected a whole number,
            got 'abc'``.

    Example:
        >>> load_recipe("fsp-table3", scale=0.02, set=["fsp.stages.transfer.lr=0.01"]).jobs["fsp"].stages[0].steps
        420
    """
    if isinstance(source, Recipe):
        document, folder, trust_used = read_yaml(dump_recipe(source), f"the recipe {source.name!r}"), "", True
    else:
        file, title = _find(source)
        document, folder, trust_used = _read(file, title), os.path.dirname(source), trust_code
    _import_used(document, [change for change in set if _is_of_uses(change)], folder, trust_used)
    _change(document, [change for change in set if not _is_of_uses(change)], seed, data_root)
    if not 0 < scale <= MOST_SCALE:
        document.problems.append((Place("--scale"), f"expected a number above 0, at most {MOST_SCALE}, got {scale}"))
    recipe = _checked(document)
    if recipe is not None and not trust_code:
        _distrust(document, recipe)
    if recipe is None or document.problems:
        raise RecipeError(document.text())
    return recipe if scale == 1 else scaled(recipe, scale)


def _packaged() -> dict[str, Traversable]:
    folders = [resources.files("flowstill.papers").joinpath(name) for name in ("tables", "studies")]
    files = [file for folder in folders for file in folder.iterdir()]
    return {file.name.removesuffix(".yaml"): file for file in files if file.name.endswith(".yaml")}


def _find(name_or_path: str | Path) -> tuple[Traversable | Path, str]:
    """The file that is meant, and what messages call it. Raises: RecipeError."""
    text, path, packaged = str(name_or_path), Path(name_or_path), _packaged()
    if isinstance(name_or_path, str) and text in packaged:
        return packaged[text], packaged[text].name
    if os.path.isfile(path):
        return path, text
    if os.path.isdir(path):
        raise RecipeError(f"{path} is a folder. Give the path of a YAML file, such as {path / 'recipe.yaml'}.")
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        beside = [file.name for file in path.parent.glob("*.y*ml")]
        raise RecipeError(f"There is no recipe file {text}. {did_you_mean(path.name, [*beside, *packaged])}".strip())
    raise RecipeError(f"There is no recipe {text!r}. {did_you_mean(text, packaged)} Or give the path of a YAML file.")


def _read(file: Traversable | Path, source: str) -> Document:
    """A recipe file as plain data. Raises: RecipeError if it holds no mapping."""
    try:
        document = read_yaml(file.read_text(encoding="utf-8"), source)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{source} cannot be read: {error}") from None
    if not isinstance(document.data, dict):
        what = "it is empty" if document.data is None else "expected a mapping"
        expected = f"{source}: {what}; a recipe begins with keys such as 'name', 'data' and 'jobs'"
        raise RecipeError(document.text() or expected)
    document.data.pop("run", None)  # what a run noted beside its recipe
    return document


def _is_of_uses(change: str) -> bool:
    """Whether a ``PATH=VALUE`` changes what the recipe uses."""
    return re.match(r"\s*uses\s*[=.\[]", change) is not None


def _import_used(document: Document, changes: Sequence[str], folder: str, trust_code: bool) -> None:
    """Import what a recipe ``uses``, before anything else in it is looked up by name.

    Files become absolute paths, looked for in ``folder``, the recipe file's, first.

    Raises:
        RecipeError: one of them may not be imported, or cannot be.
    """
    for change in changes:
        override(document, change)
    names = document.data.get("uses")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return  # the schema says what is wrong with it
    document.data["uses"] = [located(name, folder) for name in names]
    for number, name in enumerate(document.data["uses"]):
        try:
            import_code(name, trust_code=trust_code)
        except RecipeError as error:
            document.say(("uses", number), str(error))
            raise RecipeError(document.text()) from error


def _change(document: Document, changes: Sequence[str], seed: int | None, data_root: str | Path | None) -> None:
    """Bring the data into the schema's form and apply the options to it."""
    expand(document)
    jobs_as_mappings(document)
    for change in changes:
        override(document, change)
        jobs_as_mappings(document)
    if seed is not None:
        put(document, ["seed"], seed, Place(f"--seed {seed}"))
    if data_root is not None and isinstance(document.data.get("data"), dict):
        put(document, ["data", "root"], os.fspath(data_root), Place(f"--data-root {data_root}"))
    _check_teachers(document)


def _check_teachers(document: Document) -> None:
    """A teacher must have learned something: by its stages, from a file, or because it comes pretrained."""
    jobs = document.data.get("jobs")
    jobs = {name: job for name, job in jobs.items() if isinstance(job, dict)} if isinstance(jobs, dict) else {}
    teachers = ["teacher", *(str(job.get("teacher")) for job in jobs.values())]
    for name, job in jobs.items():
        network = job.get("network")
        options = network.get("options") if isinstance(network, dict) else None
        named = network.get("name") if isinstance(network, dict) else None
        learned = (isinstance(options, dict) and bool(options.get("pretrained"))) or is_object(str(named))
        if name in teachers and not learned and not any(job.get(key) for key in ("stages", "weights", "start")):
            document.say(("jobs", name), "a teacher needs 'weights' (a file) or 'stages' that train it")


def _checked(document: Document) -> Recipe | None:
    """The recipe, or None with the problems noted in the document."""
    try:
        return validated(Recipe, document.data)
    except Problems as error:
        for problem in error.problems:
            path = _written(document.data, problem.loc)
            document.say(path, _sentence(problem, document.data, path))
    return None


def _written(data: Any, loc: Loc) -> Loc:
    """The path at which the schema's ``loc`` stands in the data: what a short form leaves out is passed over."""
    path: Loc = ()
    for part in loc:
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))
        if inside:
            data, path = data[part], (*path, part)
    return path


def _sentence(problem: Problem, data: Any, path: Loc) -> str:
    """The problem's text; for an unknown key, short forms' keys count among the valid ones."""
    if problem.owner is Recipe:
        return problem.sentence(SHORTHAND)
    if problem.owner is Stage:
        for part in path[:-1]:
            data = data[part]
        if "players" not in data and "cycle" not in data:
            return problem.sentence(_STAGE_SHORT)
        if path[-1] in _STAGE_SHORT:
            return "this stage has 'players' or 'cycle', so the key goes inside them"
    if problem.owner is not None and issubclass(problem.owner, Knowledge):
        return problem.sentence(["weight"])
    return problem.sentence()


def _distrust(document: Document, recipe: Recipe) -> None:
    """Refuse networks whose building runs a Python file that the recipe names."""
    for name, job in recipe.jobs.items():
        if needs_trust(job.network.name):
            path = _written(document.data, ("jobs", name, "network", "name"))
            document.say(
                path, f"{job.network.name!r} runs a Python file; allow that with --trust-code (trust_code=True)"
            )
