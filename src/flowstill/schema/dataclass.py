"""Frozen dataclasses that validate in the constructor, so that Python and YAML go through the same checks."""

from __future__ import annotations

import functools
from typing import Any, TypeVar, cast, dataclass_transform

import pydantic
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs

from flowstill.schema.problems import Problems, members, problems_of

T = TypeVar("T")
_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True, use_enum_values=True, allow_inf_nan=False)


@dataclass_transform(frozen_default=True, field_specifiers=(pydantic.Field,))
def specification(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen dataclass that validates its fields and refuses unknown ones.

    The constructor raises ``Problems``, a RecipeError, with every problem found.

    Args:
        cls: a class with annotated fields.

    Returns:
        The dataclass.
    """
    cls._booleans = pydantic.model_validator(mode="before")(_booleans_as_text)  # type: ignore[attr-defined]  # set here
    dataclass: Any = pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)(cls)
    validate = dataclass.__init__

    @functools.wraps(validate)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            validate(self, *args, **kwargs)
        except ValidationError as error:
            raise Problems(cls.__name__, problems_of(error, dataclass)) from None

    dataclass.__init__ = checked
    return dataclass  # type: ignore[no-any-return]  # pydantic's decorator returns the same class


def is_specification(cls: type) -> bool:
    """Whether ``cls`` itself is decorated with ``@specification``; a base class does not count."""
    return "__pydantic_fields__" in vars(cls)


def validated(kind: type[T], value: Any) -> T:
    """Build a ``kind`` from plain data.

    Args:
        kind: a ``@specification`` dataclass.
        value: dicts, lists, numbers and text.

    Returns:
        The validated object.

    Raises:
        Problems: the data is invalid; every problem is listed.
    """
    adapter: TypeAdapter[T] = _adapter(cast(Any, kind))
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise Problems(kind.__name__, problems_of(error, kind)) from None


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _booleans_as_text(cls: Any, given: Any) -> Any:
    """Turn booleans given for numbers into text, so that they are refused; pydantic reads ``labels: true`` as 1."""
    fields = {name: members(field.annotation) for name, field in cls.__pydantic_fields__.items()}

    def checked(name: str | None, value: Any) -> Any:
        kinds = fields.get(name or "", ())
        numeric = bool not in kinds and (int in kinds or float in kinds)
        return str(value).lower() if isinstance(value, bool) and numeric else value

    if isinstance(given, ArgsKwargs):
        positional = tuple(
            checked(name, value) for name, value in zip([*fields, *given.args], given.args, strict=False)
        )
        return ArgsKwargs(positional, {name: checked(name, value) for name, value in (given.kwargs or {}).items()})
    return {name: checked(name, value) for name, value in given.items()} if isinstance(given, dict) else given
