"""Load recipes by name or from YAML files, apply options, validate; problems come with file and line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from flowstill.errors import RecipeError, did_you_mean, option
from flowstill.nets import is_object, needs_trust
from flowstill.recipes.dump import dump_recipe
from flowstill.recipes.overrides import override, put
from flowstill.recipes.places import Document, Place, read_yaml
from flowstill.recipes.recipe import Recipe, Stage
from flowstill.recipes.scaling import scaled
from flowstill.recipes.shorthand import SHORTHAND, expand, jobs_as_mappings
from flowstill.schema import validated
from flowstill.schema.code import import_code, located
from flowstill.schema.problems import Loc, Problem, Problems, shown
from flowstill.schema.text import path_as_text
from flowstill.transfer.knowledge import Knowledge
from flowstill.transfer.stages import PLAYER_KEYS, UPDATE_KEYS

__all__ = ["dump_recipe", "load_recipe", "recipe_names", "scaled"]

MAX_SCALE = 1000
_STAGE_SHORT = (*PLAYER_KEYS, *UPDATE_KEYS)


def recipe_names() -> dict[str, str]:
    """The packaged recipes.

    Returns:
        What each recipe is for, by its name.
    """
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
    """Load a packaged recipe, a YAML file or the ``recipe.yaml`` of a run, or change a Recipe.

    Args:
        source: a packaged recipe's name, a path, or a Recipe. The Python files that a Recipe names are trusted.
        set: changes such as ``data.batch=64`` or ``teacher.weights=FILE``, applied in order. The Python files that they
            name are trusted, and looked for in the working directory.
        scale: multiplies every count of steps (``scaled``).
        seed: replaces the recipe's seed.
        data_root: folder of the data sets; replaces the recipe's ``data.root``.
        trust_code: allow the Python files that the recipe's file names, in ``uses`` or as networks; their code runs.

    Raises:
        RecipeError: invalid input. All problems are listed, one per line, such as ``recipe.yaml:12:
            jobs.student.seed: expected a whole number, got 'abc'``.

    Example:
        >>> load_recipe("fsp-table3", scale=0.02, set=["fsp.stages.transfer.lr=0.01"]).jobs["fsp"].stages[0].steps
        420
    """
    if isinstance(source, Recipe):
        document, folder, trust_code = read_yaml(dump_recipe(source), f"the recipe {source.name!r}"), "", True
    else:
        file, title = _find(source)
        document, folder = _read(file, title), os.path.dirname(source)
    _import_used(document, [change for change in set if _is_of_uses(change)], folder, trust_code)
    _change(document, [change for change in set if not _is_of_uses(change)], seed, data_root)
    if not 0 < scale <= MAX_SCALE:
        document.problems.append((Place(option("scale", scale)), f"expected a number above 0, at most {MAX_SCALE}"))
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
    """Find a recipe's file.

    Returns:
        The file, and its name in messages.

    Raises:
        RecipeError: there is no such recipe.
    """
    text, path, packaged = str(name_or_path), Path(name_or_path), _packaged()
    if isinstance(name_or_path, str) and text in packaged:
        return packaged[text], packaged[text].name
    if os.path.isfile(path):
        return path, text
    if os.path.isdir(path):
        raise RecipeError(f"{path} is a folder. Give the path of a YAML file, such as {path / 'recipe.yaml'}.")
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        siblings = [file.name for file in path.parent.glob("*.y*ml")]
        raise RecipeError(f"There is no recipe file {text}. {did_you_mean(path.name, [*siblings, *packaged])}".strip())
    raise RecipeError(f"There is no recipe {text!r}. {did_you_mean(text, packaged)} Or give the path of a YAML file.")


def _read(file: Traversable | Path, source: str) -> Document:
    """Read a recipe file as plain data.

    Raises:
        RecipeError: the file cannot be read, or is not a mapping.
    """
    try:
        document = read_yaml(file.read_text(encoding="utf-8"), source)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{source} cannot be read: {error}") from None
    if not isinstance(document.data, dict):
        received = "an empty file" if document.data is None else shown(document.data)
        expected = f"{source}: expected a mapping with keys such as 'name', 'data' and 'jobs', got {received}"
        raise RecipeError(document.text() or expected)
    document.data.pop("run", None)  # a run's own facts, written beside its recipe
    return document


def _is_of_uses(change: str) -> bool:
    """Whether a ``PATH=VALUE`` changes the recipe's ``uses``."""
    return re.match(r"\s*uses\s*[=.\[]", change) is not None


def _import_used(document: Document, changes: Sequence[str], folder: str, trust_code: bool) -> None:
    """Import what a recipe ``uses``, before other names in it are looked up, and make paths of files absolute.

    Args:
        document: the recipe's data, changed in place.
        changes: ``PATH=VALUE`` of ``uses``, applied first. The user typed them, so the files that they name in the working
            directory are trusted.
        folder: the recipe file's folder; where the relative paths in the file are looked up first.
        trust_code: allow the Python files that the recipe's file names.

    Raises:
        RecipeError: an import fails or is not allowed.
    """
    for change in changes:
        override(document, change)
    names = document.data.get("uses")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return  # validation reports the problem
    here = [located(name) for name in names]
    typed = [document.place(("uses", number)).is_option for number in range(len(names))]
    document.data["uses"] = [
        path if by_user and os.path.isfile(path) else located(name, folder)
        for name, path, by_user in zip(names, here, typed, strict=True)
    ]
    for number, name in enumerate(document.data["uses"]):
        try:
            import_code(name, trust_code=trust_code or (typed[number] and name == here[number]))
        except RecipeError as error:
            document.say(("uses", number), str(error))
            raise RecipeError(document.text()) from error


def _change(document: Document, changes: Sequence[str], seed: int | None, data_root: str | Path | None) -> None:
    """Expand the data's short forms and apply the options."""
    expand(document)
    jobs_as_mappings(document)
    for change in changes:
        override(document, change)
        jobs_as_mappings(document)
    if seed is not None:
        put(document, ["seed"], seed, Place(option("seed", seed)))
    if data_root is not None and isinstance(document.data.get("data"), dict):
        root = path_as_text(data_root)
        put(document, ["data", "root"], root, Place(option("data_root", root)))
    _check_teachers(document)


def _check_teachers(document: Document) -> None:
    """Check that every teacher has trained weights: from its stages, from a file or pretrained."""
    jobs = document.data.get("jobs")
    jobs = {name: job for name, job in jobs.items() if isinstance(job, dict)} if isinstance(jobs, dict) else {}
    teachers = ["teacher", *(str(job.get("teacher")) for job in jobs.values())]
    for name, job in jobs.items():
        network = job.get("network")
        options = network.get("options") if isinstance(network, dict) else None
        network_name = network.get("name") if isinstance(network, dict) else None
        trained = (isinstance(options, dict) and bool(options.get("pretrained"))) or is_object(str(network_name))
        if name in teachers and not trained and not any(job.get(key) for key in ("stages", "weights", "start")):
            text = "a teacher needs 'weights' (a file), 'stages' that train it, or, if it is built trained, 'start: trained'"
            document.say(("jobs", name), text)


def _checked(document: Document) -> Recipe | None:
    """The validated recipe; None if it is invalid, with the problems recorded in the document."""
    try:
        return validated(Recipe, document.data)
    except Problems as error:
        for problem in error.problems:
            path = _path_in_data(document.data, problem.loc)
            document.say(path, _sentence(problem, document.data, path))
    return None


def _path_in_data(data: Any, loc: Loc) -> Loc:
    """The schema's ``loc`` as a path in the data, without the parts that a short form leaves out."""
    path: Loc = ()
    for part in loc:
        found = part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))
        if found:
            data, path = data[part], (*path, part)
    return path


def _sentence(problem: Problem, data: Any, path: Loc) -> str:
    """The problem's text; for an unknown key, the keys of short forms are suggested too."""
    if problem.owner is Recipe:
        return problem.sentence(SHORTHAND)
    if problem.owner is Stage:
        for part in path[:-1]:
            data = data[part]
        if "players" not in data and "cycle" not in data:
            return problem.sentence(_STAGE_SHORT)
        if path[-1] in _STAGE_SHORT:
            return "a stage with 'players' or 'cycle' takes this key inside them"
    if problem.owner is not None and issubclass(problem.owner, Knowledge):
        return problem.sentence(["weight"])
    return problem.sentence()


def _distrust(document: Document, recipe: Recipe) -> None:
    """Refuse networks that run a Python file which the recipe's file names, not the user in an option."""
    for name, job in recipe.jobs.items():
        if needs_trust(job.network.name):
            path = _path_in_data(document.data, ("jobs", name, "network", "name"))
            if document.place(path).is_option:
                continue
            document.say(path, f"{job.network.name!r} runs a Python file; allow it with {option('trust_code', True)}")
