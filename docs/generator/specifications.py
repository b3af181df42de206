"""The options of a specification: a row for each, with the meaning that its class's docstring gives it."""

from __future__ import annotations

import inspect
import types
from dataclasses import fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import griffe
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from flowstill.recipes.recipe import Optimizer
from flowstill.transfer.knowledge import KNOWLEDGE
from flowstill.transfer.recoding import Recoding
from flowstill.transfer.rules import RULES
from flowstill.transfer.stages import Stored
from generator.markdown import line, table, written

BOUNDS = ((Ge, "ge", "at least"), (Gt, "gt", "above"), (Le, "le", "at most"), (Lt, "lt", "below"))


def option_names(kind: type) -> list[str]:
    """The fields of a specification, without a ``name`` that has one value only."""
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in fields(kind)]
    return [name for name in names if name != "name" or len(get_args(hints[name])) > 1]


CLASSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (*KNOWLEDGE.values(), *RULES.values(), Optimizer, Recoding, Stored)
    if kind in KNOWLEDGE.values() or option_names(kind)
}


def meanings(kind: type) -> dict[str, str]:
    """What the docstring of a specification, or of a class that it derives from, says of each field."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        docstring = griffe.Docstring(inspect.cleandoc(vars(cls).get("__doc__") or ""), parser="google")
        for section in docstring.parse(warnings=False):
            if section.kind is griffe.DocstringSectionKind.attributes:
                found |= {attribute.name: line(attribute.description) for attribute in section.value}
    return found


def options(class_name: str) -> str:
    """A table of a specification's options."""
    kind = CLASSES[class_name]
    hints, meaning = get_type_hints(kind, include_extras=True), meanings(kind)
    defaults = {field.name: field.default for field in fields(kind)}
    if missing := [name for name in option_names(kind) if name not in meaning]:
        raise LookupError(
            f"{class_name}: the docstring does not say what {', '.join(missing)} means. "
            f"Add '{missing[0]}: text' under 'Attributes:'."
        )
    rows = [
        (f"`{name}`", values(hints[name]), f"`{written(defaults[name])}`", meaning[name]) for name in option_names(kind)
    ]
    return table(("option", "values", "default", "meaning"), rows) if rows else "No options."


def values(hint: Any, bounds: str = "", plural: str = "") -> str:
    """What values a type allows.

    >>> values(Annotated[float, FieldInfo(ge=0, lt=1)] | None), values(Literal["a", "b"])
    ('number, at least 0, below 1; or `null`', '`a`, `b`')
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        extras = [extra for info in inner[1:] if isinstance(info, FieldInfo) for extra in info.metadata]
        said = [f", {word} {getattr(e, key)}" for of, key, word in BOUNDS for e in extras if isinstance(e, of)]
        return values(inner[0], "".join(said), plural)
    if origin in (Union, types.UnionType):
        return "; or ".join(values(one, plural=plural) for one in inner)
    if origin is Literal:
        return ", ".join(f"`{written(value)}`" for value in inner)
    if origin is tuple:
        of = values(inner[0], plural="s")
        return f"list of {of}" if inner[-1] is ... else f"{len(inner)} {of}" if not plural else f"pairs of {of}"
    return {
        bool: "`true`, `false`",
        types.NoneType: "`null`",
        int: f"whole number{plural}",
        float: f"number{plural}",
        str: f"text{plural}",
    }[hint] + bounds
