"""Specifications that recipes refer to by name: how a knowledge and a rule are registered and read."""

from __future__ import annotations

from typing import Any, TypeVar

from flowstill.errors import RecipeError
from flowstill.schema import is_specification, validated
from flowstill.schema.registry import Registry

S = TypeVar("S")


def add_specification(registry: Registry[type[S]], base: type[S], cls: type[S], decorator: str) -> None:
    """Register a ``@specification`` under the default of its field ``name``.

    Args:
        registry: where it goes.
        base: the class that it must derive from.
        cls: the specification.
        decorator: what users write above it.

    Raises:
        RecipeError: not a ``@specification`` of ``base`` with a name, or the name is taken.
    """
    if not (isinstance(cls, type) and issubclass(cls, base) and is_specification(cls)):
        raise RecipeError(
            f"Expected a subclass of {base.__name__} under {decorator} and @specification. Received: {cls!r}. "
            f"Write {decorator} above @specification."
        )
    registry.add(getattr(cls, "name", ""), cls, cls.__module__)


def read_specification(registry: Registry[type[S]], base: type[S], value: Any, example: str) -> S:
    """Read a registered specification from its name, a mapping with its name, or itself.

    Args:
        registry: where it is looked up.
        base: the class that it derives from.
        value: as a recipe has it.
        example: a mapping, for the error.

    Raises:
        RecipeError: the value is none of these, its name is unknown, or its options are wrong.
    """
    if isinstance(value, base):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise RecipeError(
            f"expected a {registry.kind}'s name or a mapping with a key 'name', such as {example}, got {value!r}"
        )
    return validated(registry.find(value["name"]), value)
