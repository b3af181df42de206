"""The ``recipe.yaml`` of a run folder: read as plain data; only what run folders and reports need is checked."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from flowstill.errors import RunError

RECIPE = "recipe.yaml"
_RESTORE = "It was edited by hand; restore it."


@dataclass
class _Stage:
    name: str
    steps: int


@dataclass
class _Network:
    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Job:
    network: _Network
    stages: list[_Stage] | None = None
    teacher: str | None = None
    about: str | None = None


@dataclass
class _Ensemble:
    jobs: list[str]


@dataclass
class _Paper:
    title: str
    accuracy: dict[str, float | None] | None = None


@dataclass
class _Facts:
    id: str | None = None
    device: str | None = None
    devices: int | None = None
    threads: int | None = None
    versions: dict[str, str] | None = None
    files: dict[str, str] | None = None
    preprocessing: dict[str, dict[str, Any]] | None = None


@dataclass
class _Recipe:
    jobs: dict[str, _Job]
    ensembles: dict[str, _Ensemble] | None = None
    paper: _Paper | None = None
    data: dict[str, Any] | None = None
    uses: list[str] | None = None
    run: _Facts | None = None


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a run's recipe.

    Raises:
        RunError: it cannot be read, or lacks what every run's recipe has.
    """
    from pydantic import ValidationError  # slow to import

    try:
        recipe = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{str(path)!r} cannot be read: {reason}. {_RESTORE}") from None
    if not isinstance(recipe, dict):
        raise RunError(f"{str(path)!r}: expected a mapping. Received: {type(recipe).__name__}. {_RESTORE}")
    try:
        _adapter().validate_python(recipe)
    except ValidationError as error:
        first = error.errors()[0]
        raise RunError(f"{str(path)!r}: {'.'.join(map(str, first['loc']))}: {first['msg']}. {_RESTORE}") from None
    return recipe


@functools.cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(_Recipe)


T = TypeVar("T")


def fact(recipe: dict[str, Any], kind: type[T], *keys: str, path: Path) -> T:
    """A fact under the recipe's ``run``.

    Args:
        recipe: as ``read_recipe`` gives it.
        kind: the fact's type.
        keys: the path to it, such as ``"data", "classes"``.
        path: the file, for messages.

    Raises:
        RunError: it is missing, or of another type.
    """
    value: Any = recipe.get("run")
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, kind):
        received = "nothing" if value is None else repr(value)
        raise RunError(
            f"{str(path)!r}: {'.'.join(('run', *keys))}: expected a value of type {kind.__name__}. "
            f"Received: {received}. {_RESTORE}"
        )
    return value


def read_text(path: Path) -> str:
    """The text of a file in a run folder.

    Raises:
        RunError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{str(path)!r} cannot be read: {error}. Restore it from a copy.") from None
