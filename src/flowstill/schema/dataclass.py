"""Frozen dataclasses whose constructor validates: what Python and YAML users write is checked by the same code."""

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

    Raises: RecipeError (``Problems``) from the constructor, with every problem found.
    """
    cls._booleans = pydantic.model_validator(mode="before")(_booleans_as_text)  # type: ignore[attr-defined]  # made here
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)(cls)
    validate = made.__init__

    @functools.wraps(validate)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            validate(self, *args, **kwargs)
        except ValidationError as error:
            raise Problems(cls.__name__, problems_of(error, made)) from None

    made.__init__ = checked
    return made  # type: ignore[no-any-return]  # pydantic's decorator gives the class it got


def is_specification(cls: type) -> bool:
    """Whether ``@specification`` made this very class, not one that it derives from."""
    return "__pydantic_fields__" in vars(cls)


def validated(kind: type[T], value: Any) -> T:
    """Build a ``kind`` from plain data (dicts, lists, strings).

    Raises: RecipeError (``Problems``) with every problem found.
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
    """A boolean for a number becomes text, which is refused; pydantic would read ``labels: true`` as one label."""
    fields = {name: members(field.annotation) for name, field in cls.__pydantic_fields__.items()}

    def checked(name: str | None, value: Any) -> Any:
        kinds = fields.get(name or "", ())
        numeric = bool not in kinds and (int in kinds or float in kinds)
        return str(value).lower() if isinstance(value, bool) and numeric else value

    if isinstance(given, ArgsKwargs):
        row = tuple(checked(name, value) for name, value in zip([*fields, *given.args], given.args, strict=False))
        return ArgsKwargs(row, {name: checked(name, value) for name, value in (given.kwargs or {}).items()})
    return {name: checked(name, value) for name, value in given.items()} if isinstance(given, dict) else given
