"""Problems found by validation: where, what was expected and what was received, in plain words."""

from __future__ import annotations

import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from flowstill.errors import RecipeError, did_you_mean, nearest

Loc = tuple[str | int, ...]

_EXPECTED = {
    "int_": "a whole number",
    "float_": "a number",
    "finite_number": "a finite number",
    "bool_": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "dataclass_": "a mapping",
    "model_attributes_type": "a mapping",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_long": "at most {max_length} items",
    "too_short": "at least {min_length} items",
}


@dataclass(frozen=True)
class Problem:
    """One problem with a value.

    Attributes:
        loc: path below the value that was validated.
        text: what is wrong, without the path.
        owner: for an unknown key, ``loc[-1]``, the dataclass that lacks it.
    """

    loc: Loc
    text: str
    owner: type | None = None

    def sentence(self, more: Iterable[str] = ()) -> str:
        """The text; for an unknown key, with the nearest of the owner's keys and ``more``."""
        if self.owner is None:
            return self.text
        keys = [*field_names(self.owner), *more]
        near = did_you_mean(str(self.loc[-1]), keys) or f"Expected one of {', '.join(keys)}."
        return f"{self.text}. {near}"


class Problems(RecipeError):
    """All problems with one value, one per line.

    Attributes:
        problems: the problems in the order found.
    """

    def __init__(self, what: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{path_text((what, *p.loc))}: {p.sentence()}" for p in self.problems))


def path_text(loc: Loc) -> str:
    """Write a path as text.

    Example:
        >>> path_text(("jobs", "student", "stages", 0, "lr"))
        'jobs.student.stages[0].lr'
    """
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def field_names(kind: Any) -> tuple[str, ...]:
    """The fields of a ``@specification`` dataclass, in order; none for other types."""
    return tuple(_fields(kind))


def members(kind: Any) -> tuple[Any, ...]:
    """The types in a union, without None and without the metadata of ``Annotated``.

    Example:
        >>> members(Annotated[int, "positive"] | None)
        (<class 'int'>,)
    """
    if get_origin(kind) is Annotated:
        return members(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(m for argument in get_args(kind) if argument is not type(None) for m in members(argument))
    return (kind,)


def shown(value: Any) -> str:
    """Format a value for a message, in at most 60 characters.

    Example:
        >>> shown("abc"), shown(True), shown(None)
        ("'abc'", 'true', 'nothing')
    """
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def problems_of(error: ValidationError, kind: Any) -> list[Problem]:
    """Translate pydantic's errors.

    Args:
        error: what pydantic raised.
        kind: the type that was validated against.

    Returns:
        One problem for each wrong value, not one for each type in a union.
    """
    found = [
        _Finding(e["loc"], e["type"], e["input"], e.get("ctx", {}), e["msg"]) for e in error.errors(include_url=False)
    ]
    return _read(found, kind, _hint(kind))


@dataclass(frozen=True)
class _Finding:
    """One of pydantic's errors, with ``loc`` relative to the value being read."""

    loc: Loc
    type: str
    input: Any
    context: dict[str, Any]
    message: str


def _read(found: list[_Finding], kind: Any, hint: str) -> list[Problem]:
    """The problems of a value that should be a ``kind``; ``hint`` describes the valid values in plain words."""
    problems = [p for finding in found if not finding.loc for p in _whole(finding, kind, hint)]
    below: dict[str | int, list[_Finding]] = {}
    for finding in found:
        if finding.loc:
            below.setdefault(finding.loc[0], []).append(replace(finding, loc=finding.loc[1:]))
    kinds = members(kind)
    if len(kinds) > 1:
        return problems + (_best_branch(below, kinds, hint) if below else [])
    for part, findings in below.items():
        problems += _part(part, findings, kinds[0])
    return list(dict.fromkeys(problems))


def _part(part: str | int, found: list[_Finding], kind: Any) -> list[Problem]:
    """The problems of one field, item or key of a ``kind``."""
    first = found[0]
    if first.loc == ("[key]",):
        return [_wrong_key(part, first, kind), *(_part(part, found[1:], kind) if found[1:] else [])]
    if first.type in ("unexpected_keyword_argument", "invalid_key") and not first.loc:
        return [Problem((part,), "unknown key", owner=kind)]
    fields = list(_fields(kind))
    if isinstance(part, int) and part < len(fields):
        part = fields[part]  # an argument given by position
    if first.type == "unexpected_positional_argument" and not first.loc:
        return [Problem((), f"expected at most {len(fields)} values, also got {shown(first.input)}")]
    if first.type == "missing" and not first.loc:
        if isinstance(part, int):
            return [Problem((), f"expected {len(get_args(kind))} items, got {shown(first.input)}")]
        return [Problem((), f"{part!r} is missing")]
    if first.loc == ("[key]",) and isinstance(first.input, str) and (name := _hint(next(iter(get_args(kind)), None))):
        return [Problem((part,), f"expected {name}, got {shown(first.input)}")]
    inner, hint = _inner(kind, part)
    return [replace(p, loc=(part, *p.loc)) for p in _read(found, inner, hint)]


def _wrong_key(key: str | int, finding: _Finding, kind: Any) -> Problem:
    """The problem with a key of a mapping: not text, or text that breaks the rule in its annotation."""
    if not isinstance(finding.input, str):
        return Problem((key,), f"expected text as the name, got {shown(finding.input)}; put it in quotes")
    return Problem((key,), f"expected {_hint(get_args(kind)[0]) or 'a name'}, got {shown(finding.input)}")


def _whole(finding: _Finding, kind: Any, hint: str) -> list[Problem]:
    """The problems with a value as a whole."""
    if finding.type in ("value_error", "assertion_error"):
        cause = finding.context["error"]
        return list(cause.problems) if isinstance(cause, Problems) else [Problem((), str(cause))]
    return [
        Problem((), f"expected {hint or _expected(finding, kind)}, got {shown(_given(finding))}{_near(finding, kind)}")
    ]


def _best_branch(branches: dict[str | int, list[_Finding]], kinds: tuple[Any, ...], hint: str) -> list[Problem]:
    """The problems of a value of a union: those of the type that was meant, or one problem that names all types."""
    meant = [(label, found) for label, found in branches.items() if _was_meant(found, _branch(label, kinds))]
    if len(meant) == 1:
        label, found = meant[0]
        return _read(found, _branch(label, kinds), hint="")
    first = [(found[0], _branch(label, kinds)) for label, found in branches.items()]
    expected = hint or " or ".join(dict.fromkeys(_expected(finding, kind) for finding, kind in first))
    near = next((text for finding, kind in first if (text := _near(finding, kind))), "")
    return [Problem((), f"expected {expected}, got {shown(_given(first[0][0]))}{near}")]


def _was_meant(found: list[_Finding], kind: Any) -> bool:
    """Whether a value was meant as a ``kind``: its problems are in its fields or its meaning, not its type."""
    if any(not f.loc and f.type not in ("value_error", "assertion_error") for f in found):
        return False
    required = [f for f in _fields(kind).values() if f.is_required()]
    missing = [f for f in found if len(f.loc) == 1 and f.type == "missing"]
    return not required or len(missing) < len(required)


def _branch(label: str | int, kinds: tuple[Any, ...]) -> Any:
    """The type that pydantic labels ``label``, by the class's name or the value of its tag."""
    for kind in kinds:
        tags = {f.default for f in _fields(kind).values() if isinstance(f.default, str)}
        if label == getattr(kind, "__name__", "") or label in tags:
            return kind
    return next((k for k in kinds if str(label).startswith(getattr(get_origin(k), "__name__", "?").lower())), Any)


def _inner(kind: Any, part: str | int) -> tuple[Any, str]:
    """The type of one field or item of a ``kind``, and the hint in its annotation."""
    if part in _fields(kind):
        field = _fields(kind)[str(part)]
        return field.annotation, field.description or ""
    origin, arguments = get_origin(kind), get_args(kind)
    inner: Any = Any
    if origin is dict:
        inner = arguments[1]
    elif origin in (tuple, list) and isinstance(part, int):
        unbounded = origin is list or arguments[-1] is Ellipsis
        inner = arguments[0 if unbounded else min(part, len(arguments) - 1)]
    return inner, _hint(inner)


def _hint(kind: Any) -> str:
    """The description in ``Annotated``; empty if there is none."""
    extras = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    return next((e.description for e in extras if isinstance(e, FieldInfo) and e.description), "")


def _fields(kind: Any) -> dict[str, FieldInfo]:
    """The fields of a ``@specification`` dataclass by name, as pydantic describes them."""
    return getattr(kind, "__pydantic_fields__", {})


def _choices(finding: _Finding, kind: Any) -> list[Any]:
    """The allowed values if a literal or the tag of a mapping was expected."""
    if finding.type.startswith("union_tag"):
        name = str(finding.context["discriminator"]).strip("'")
        return [_fields(k)[name].default for k in members(kind) if name in _fields(k)]
    literals = [k for k in members(kind) if get_origin(k) is Literal]
    return [choice for literal in literals for choice in get_args(literal)] if finding.type == "literal_error" else []


def _given(finding: _Finding) -> Any:
    return finding.context.get("tag", finding.input)


def _expected(finding: _Finding, kind: Any) -> str:
    choices = _choices(finding, kind)
    if choices:
        return " or ".join([", ".join(repr(c) for c in choices[:-1]), repr(choices[-1])]).removeprefix(" or ")
    if finding.type.startswith("dataclass_") or finding.type == "missing":
        required = [repr(name) for name, field in _fields(kind).items() if field.is_required()]
        return f"a mapping with {' and '.join(required)}" if required else "a mapping"
    for start, text in _EXPECTED.items():
        if finding.type.startswith(start):
            return text.format(**{k: f"{v:g}" for k, v in finding.context.items() if isinstance(v, (int, float))})
    return finding.message.removeprefix("Input should be ")


def _near(finding: _Finding, kind: Any) -> str:
    given = _given(finding)
    choices = [c for c in _choices(finding, kind) if isinstance(c, str)]
    near = nearest(given, choices) if isinstance(given, str) else []
    return f". Did you mean {near[0]!r}?" if near else ""
