"""The package as griffe reads it, without running it: signatures, fields and the sections of docstrings."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import griffe

import flowstill

SOURCES = Path(flowstill.__file__).parent.parent
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
WIDTH = 100  # of a signature on one line


@functools.cache
def package() -> griffe.Object:
    """The package ``flowstill``."""
    return griffe.load("flowstill", search_paths=[SOURCES], docstring_parser="google", resolve_aliases=True)


def public(name: str) -> griffe.Object:
    """What ``flowstill.NAME`` is, where it is defined."""
    thing = getattr(flowstill, name)
    home = getattr(thing, "__module__", "")
    if (inspect.isclass(thing) or inspect.isroutine(thing)) and home.startswith("flowstill."):
        return package()[f"{home}.{thing.__qualname__}".removeprefix("flowstill.")]
    found = package()[name]
    return found.final_target if found.is_alias else found


def sections(thing: griffe.Object) -> list[griffe.DocstringSection]:
    """The docstring's sections, in order."""
    return thing.docstring.parsed if thing.docstring else []


def described(cls: griffe.Class) -> dict[str, str]:
    """What the docstring of a class says of its attributes; of inherited fields, what the class says that has them."""
    found: dict[str, str] = {}
    for one in reversed(cls.mro()):
        found |= _attributes(one)
    inherited = {field.name for field in fields(cls)}
    return {name: text for name, text in found.items() if name in inherited} | _attributes(cls)


def _attributes(cls: griffe.Class) -> dict[str, str]:
    kind = griffe.DocstringSectionKind.attributes
    return {a.name: a.description for section in sections(cls) if section.kind is kind for a in section.value}


def fields(cls: griffe.Class) -> list[griffe.Attribute]:
    """The fields of a dataclass, also those that it inherits; none for any other class."""
    found: dict[str, griffe.Attribute] = {}
    for one in (*reversed(cls.mro()), cls):
        if any(str(decorator.value).startswith(("specification", "dataclass")) for decorator in one.decorators):
            own = (member for member in one.members.values() if member.is_attribute and _is_field(member))
            found |= {member.name: member for member in own}
    return list(found.values())


def _is_field(attribute: griffe.Attribute) -> bool:
    is_own = {
        "instance-attribute"
    } <= attribute.labels and "property" not in attribute.labels  # a ClassVar is of the class
    return is_own and not attribute.name.startswith("_") and not _is_fixed(str(attribute.annotation or ""))


def _is_fixed(hint: str) -> bool:
    """Whether a field has one value only, as a specification's ``name`` has."""
    return hint.startswith("Literal[") and "," not in hint


def methods(cls: griffe.Class) -> Iterator[griffe.Object]:
    """Public methods and properties that have a docstring and are not those of a class that this one derives from."""
    inherited = {name for one in cls.mro() for name in one.members}
    for name, member in cls.members.items():
        is_method = member.is_function or "property" in member.labels
        if is_method and not name.startswith("_") and name not in inherited and member.docstring:
            yield member


def hint(annotation: object) -> str:
    """A type as a reader needs it: without ``Annotated``, whose bounds follow in words.

    >>> hint("Annotated[int, Field(ge=1)] | None")
    '`int | None`, at least 1'
    """
    if annotation is None:
        return ""
    tree = ast.parse(str(annotation), mode="eval")
    bounds = [
        f", {BOUNDS[key.arg]} {ast.unparse(key.value)}"
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        for key in call.keywords
        if key.arg in BOUNDS
    ]
    return f"`{_short(tree)}`{''.join(bounds)}"


class _Plain(ast.NodeTransformer):
    """``Annotated[X, ...]`` becomes X."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id == "Annotated" and isinstance(node.slice, ast.Tuple):
            return node.slice.elts[0]
        return node


def _short(tree: ast.Expression) -> str:
    return _double_quoted(ast.unparse(_Plain().visit(tree)))


def _double_quoted(text: str) -> str:
    """Strings as this package writes them."""
    return re.sub(r"'([^'\"]*)'", r'"\1"', text)


def default(value: object) -> str:
    """A default, and the call that makes one.

    >>> default("Field(default_factory=dict)"), default("1e-4"), default(None)
    ('dict()', '1e-4', '')
    """
    if value is None:
        return ""
    made = re.search(r"default_factory=(\w+)", str(value))
    return f"{made[1]}()" if made else _double_quoted(str(value))


def signature(name: str, thing: griffe.Object) -> str:
    """How it is called, on one line if that is short enough."""
    if thing.is_class:
        init = thing.members.get("__init__")
        if init is not None and init.is_function:
            return _call(name, _parameters(init), "")
        return (
            _call(name, [_parameter(f.name, f.annotation, f.value) for f in fields(thing)], "")
            if fields(thing)
            else name
        )
    if not thing.is_function:
        annotation = "" if thing.annotation is None else f": {thing.annotation}"
        return f"{name} = {thing.value}" if thing.value is not None and not annotation else f"{name}{annotation}"
    returns = "" if thing.returns is None else f" -> {_short(ast.parse(str(thing.returns), mode='eval'))}"
    return _call(name, _parameters(thing), returns)


def _parameters(function: griffe.Function) -> list[str]:
    rows: list[str] = []
    before = griffe.ParameterKind.positional_or_keyword
    for parameter in function.parameters:
        if function.parent.is_class and parameter.name in ("self", "cls"):
            continue
        star = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(
            parameter.kind, ""
        )
        if parameter.kind is griffe.ParameterKind.keyword_only and before not in (
            griffe.ParameterKind.keyword_only,
            griffe.ParameterKind.var_positional,
        ):
            rows.append("*")
        value = None if star else parameter.default
        rows.append(_parameter(star + parameter.name, parameter.annotation, value))
        before = parameter.kind
    return rows


def _parameter(name: str, annotation: object, value: object) -> str:
    said = "" if annotation is None else f": {_short(ast.parse(str(annotation), mode='eval'))}"
    if value is None:
        return name + said
    return f"{name}{said} = {default(value)}" if said else f"{name}={default(value)}"


def _call(name: str, parameters: list[str], returns: str) -> str:
    short = f"{name}({', '.join(parameters)}){returns}"
    if len(short) <= WIDTH:
        return short
    rows = "".join(f"    {parameter},\n" for parameter in parameters)
    return f"{name}(\n{rows}){returns}"
