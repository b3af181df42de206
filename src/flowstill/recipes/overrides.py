"""``--set a.b=c``: change single values of a recipe before it is validated."""

from __future__ import annotations

from typing import Any

from flowstill.errors import did_you_mean, option
from flowstill.recipes.places import Document, Place, read_yaml
from flowstill.recipes.recipe import Recipe
from flowstill.schema.problems import Loc, field_names, path_text, shown

_NAMED = ("network", "rule", "task", "transfer", "knowledge")  # keys where NAME is short for {name: NAME}


def override(document: Document, text: str) -> None:
    """Set one value; problems are recorded in the document.

    A path begins with a key of the recipe or with a job's name: ``data.batch``, ``teacher.weights``. An item of a list
    is given by its number or its name: ``student.stages.transfer.steps``, ``student.stages[0].steps``.

    Args:
        document: the recipe's data, changed in place.
        text: ``PATH=VALUE``, the value in YAML.
    """
    given, equals, value_text = text.partition("=")
    parts = given.strip().replace("[", ".").replace("]", "").split(".")
    place = Place(option("set", text))
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
    """Set a value, and create missing mappings on the way to it.

    Args:
        document: the recipe's data, changed in place.
        parts: the path: keys, and numbers or names of items.
        value: plain data.
        place: where the value was given.

    Raises:
        LookupError: the path leads to an item that does not exist.
    """
    container, path = document.data, Loc()
    for number, part in enumerate(parts):
        key = _key(container, part, path)
        path = (*path, key)
        if number == len(parts) - 1:
            container[key] = value
            for old in [old for old in document.places if old[: len(path)] == path]:
                del document.places[old]
            document.places[path] = place
            return
        child = container.get(key) if isinstance(container, dict) else container[key]
        if child is None:
            child = container[key] = {}
            document.places[path] = place
        elif isinstance(child, str) and (key in _NAMED or isinstance(container, list)):
            child = container[key] = {"name": child}
        container = child


def _start(data: dict[str, Any], first: str) -> list[str]:
    """The full path to the first part of a path, which may be a job's name or ``stages`` of the student.

    Raises:
        LookupError: it is neither a key of a recipe nor a job.
    """
    jobs = data.get("jobs")
    jobs = jobs if isinstance(jobs, dict) else {}
    if first in field_names(Recipe):
        return [first]
    if first in jobs:
        return ["jobs", first]
    if first == "stages" and "student" in jobs:
        return ["jobs", "student", "stages"]
    near = did_you_mean(first, [*field_names(Recipe), *map(str, jobs)])
    raise LookupError(f"Unknown key or job {first!r}. {near}".strip())


def _key(container: Any, part: str, path: Loc) -> str | int:
    """The key or the index that ``part`` stands for in the mapping or list at ``path``.

    Raises:
        LookupError: the container is neither, or the list has no such item.
    """
    if isinstance(container, dict):
        numbered = bool(container) and all(isinstance(key, int) for key in container)
        return int(part) if numbered and part.isdecimal() else part
    if not isinstance(container, list):
        raise LookupError(f"{path_text(path)} is {shown(container)}, so it has no {part!r}")
    if part.isdecimal() and int(part) < len(container):
        return int(part)
    names = [_name(item) for item in container]
    if part in names:
        return names.index(part)
    numbers = f"its numbers: 0 to {len(container) - 1}" if container else "it is empty"
    near = did_you_mean(part, [name for name in names if name])
    raise LookupError(f"{path_text(path)} has no item {part!r} ({numbers}). {near}".strip())


def _name(item: Any) -> str:
    """The name of a list's item or of its knowledge; empty if it has none."""
    if isinstance(item, dict):
        return _name(item.get("name") or item.get("knowledge"))
    return item if isinstance(item, str) else ""
