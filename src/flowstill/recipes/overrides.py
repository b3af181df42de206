"""``--set a.b=c``: single values of a recipe, changed before it is checked."""

from __future__ import annotations

from typing import Any

from flowstill.errors import did_you_mean
from flowstill.recipes.places import Document, Place, read_yaml
from flowstill.recipes.recipe import Recipe
from flowstill.schema.problems import Loc, field_names, path_text, shown

_NAMED = ("network", "rule", "task", "transfer", "knowledge")  # where a name alone is short for {name: NAME}


def override(document: Document, text: str) -> None:
    """Set one value, ``path=value`` with the value in YAML; what is wrong is noted in the document.

    A path begins with a key of the recipe or with a job's name: ``data.batch``, ``teacher.weights``. In a list, an
    item is named by its number or its name: ``student.stages.transfer.steps``, ``student.stages[0].steps``.
    """
    given, equals, value_text = text.partition("=")
    parts = given.strip().replace("[", ".").replace("]", "").split(".")
    place = Place(f"--set {text}")
    if not equals or not all(parts):
        document.problems.append((place, "expected PATH=VALUE, such as data.batch=64"))
        return
    value = read_yaml(value_text, place.source)
    if value.problems:
        document.problems.append((place, value.problems[0][1]))
        return
    try:
        put(document, [*_start(document.data, parts[0]), *parts[1:]], value.data, place)
    except LookupError as error:
        document.problems.append((place, str(error.args[0])))


def put(document: Document, parts: list[str], value: Any, place: Place) -> None:
    """Set the value at the path of ``parts``, making the mappings on the way that are not there yet.

    Raises: LookupError where the path leads into something that holds no such item.
    """
    here, path = document.data, Loc()
    for number, part in enumerate(parts):
        key = _key(here, part, path)
        path = (*path, key)
        if number == len(parts) - 1:
            here[key] = value
            for old in [old for old in document.places if old[: len(path)] == path]:
                del document.places[old]
            document.places[path] = place
            return
        child = here.get(key) if isinstance(here, dict) else here[key]
        if child is None:
            child = here[key] = {}
            document.places[path] = place
        elif isinstance(child, str) and (key in _NAMED or isinstance(here, list)):
            child = here[key] = {"name": child}
        here = child


def _start(data: dict[str, Any], first: str) -> list[str]:
    """The beginning of a path that may begin with a job's name, or with the student's ``stages``."""
    jobs = data.get("jobs")
    jobs = jobs if isinstance(jobs, dict) else {}
    if first in field_names(Recipe):
        return [first]
    if first in jobs:
        return ["jobs", first]
    if first == "stages" and "student" in jobs:
        return ["jobs", "student", "stages"]
    near = did_you_mean(first, [*field_names(Recipe), *map(str, jobs)])
    raise LookupError(f"{first!r} is neither a key of a recipe nor a job of this one. {near}".strip())


def _key(here: Any, part: str, path: Loc) -> str | int:
    """The key or the number that ``part`` means in a mapping or a list."""
    if isinstance(here, dict):
        of_numbers = bool(here) and all(isinstance(key, int) for key in here)
        return int(part) if of_numbers and part.isdecimal() else part
    if not isinstance(here, list):
        raise LookupError(f"{path_text(path)} is {shown(here)}, which holds no {part!r}")
    if part.isdecimal() and int(part) < len(here):
        return int(part)
    names = [_name(item) for item in here]
    if part in names:
        return names.index(part)
    numbers = f"0 to {len(here) - 1}" if here else "none, it is empty"
    near = did_you_mean(part, [name for name in names if name])
    raise LookupError(f"{path_text(path)} has no item {part!r} (its numbers: {numbers}). {near}".strip())


def _name(item: Any) -> str:
    """What an item of a list is called: its name, or its knowledge's."""
    if isinstance(item, dict):
        return _name(item.get("name") or item.get("knowledge"))
    return item if isinstance(item, str) else ""
