"""Call a procedure with arguments from a recipe file: by name and in short forms."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from flowstill.errors import RecipeError, did_you_mean
from flowstill.schema import is_specification
from flowstill.schema.problems import Problem, Problems, members, problems_of, shown
from flowstill.transfer.procedures import PROCEDURES
from flowstill.transfer.rules import Rule, parse_rule
from flowstill.transfer.schedules import Schedule
from flowstill.transfer.stages import Stage

_SCHEDULES = frozenset(members(Schedule))
_PLAIN = (int, float, str, bool)


def make_stages(name: Any, arguments: Mapping[Any, Any]) -> tuple[Stage, ...]:
    """Build the stages of the procedure ``name`` from plain data.

    Args:
        name: name of a registered procedure.
        arguments: the procedure's arguments by name; schedules, rules, optimisers and terms may have their short forms.

    Raises:
        Problems: arguments are unknown, missing or invalid; all are listed.
        RecipeError: the procedure is unknown or refuses its arguments.

    Example:
        >>> [stage.steps for stage in make_stages("alone", {"steps": 10, "lr": {0: 0.1, 5: 0.01}})]
        [10]
    """
    if not isinstance(name, str):
        raise RecipeError(f"expected a procedure's name, got {shown(name)}. {did_you_mean('', PROCEDURES)}".strip())
    make = PROCEDURES.find(name)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = {key: p for key, p in inspect.signature(make).parameters.items() if p.kind in named}
    types = get_type_hints(make, include_extras=True)
    problems, given = [], {}
    for key, value in arguments.items():
        if key in parameters:
            given[key], wrong = _read(value, types.get(key, Any))
            problems += [Problem((key, *problem.loc), problem.text, problem.owner) for problem in wrong]
        else:
            near = did_you_mean(str(key), parameters)
            problems.append(Problem((key,), f"procedure {name!r} has no argument {str(key)!r}. {near}".strip()))
    for key, parameter in parameters.items():
        if key not in arguments and parameter.default is parameter.empty:
            problems.append(Problem((), f"procedure {name!r} needs {key!r}"))
    if problems:
        raise Problems(name, problems)
    stages = make(**given)
    return (stages,) if isinstance(stages, Stage) else tuple(stages)


def _read(value: Any, kind: Any) -> tuple[Any, list[Problem]]:
    """Convert an argument to its annotated type, and list its problems."""
    kinds = members(kind)
    if set(kinds) >= _SCHEDULES:
        kind = Schedule
    elif Rule in kinds:
        return _read_rule(value)
    elif not all(k in _PLAIN or is_specification(k) for k in kinds):
        return value, []  # terms are read by the stage, other types by the procedure
    try:
        return TypeAdapter(kind).validate_python(value), []
    except ValidationError as error:
        return None, problems_of(error, kind)


def _read_rule(value: Any) -> tuple[Any, list[Problem]]:
    try:
        return parse_rule(value), []
    except Problems as error:
        return None, list(error.problems)
    except RecipeError as error:
        return None, [Problem((), str(error))]
