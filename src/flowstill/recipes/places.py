"""Read YAML into plain data and record the line of every key and item."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# Not ruamel.yaml: it records no line for an item's alias, a merge or a second duplicate, does not read dates and 0x10 as
# text, accepts tags and expands alias bombs.
import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from flowstill.schema.problems import Loc, path_text, shown

_MAX_VALUES = 100_000  # a few aliases of aliases can expand to billions
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:e[-+]?[0-9]+)?|\.[0-9]+(?:e[-+]?[0-9]+)?|[0-9]+e[-+]?[0-9]+|\.inf)$|\.nan$", re.I
)
PLAIN = {  # YAML 1.2's rules for unquoted text: 1e-3 is a number; yes, on and 010 are text
    "null": (re.compile(r"~$|null$|$", re.I), ["~", "n", "N", ""]),
    "bool": (re.compile(r"true$|false$", re.I), list("tTfF")),
    "int": (re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")),
    "float": (_FLOAT, list("-+.0123456789")),
    "str": (re.compile(r"(?!)"), []),
}
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Place:
    """Where a value was given: a line of a file, or an option of the command line.

    Attributes:
        source: the file's name, or the option.
        line: line in the file, from 1; 0 for an option.
        written: line of the value itself if ``line`` holds an alias to it, else None.
    """

    source: str
    line: int = 0
    written: int | None = None

    @property
    def is_option(self) -> bool:
        """Whether the user gave the value in an option, not in a file."""
        return self.line == 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass
class Document:
    """Plain data, the place of everything in it, and the problems found so far.

    Attributes:
        data: dicts, lists, numbers, text, booleans and None.
        places: where each path in the data was given; the empty path is the document.
        problems: each with its place.
    """

    data: Any = None
    places: dict[Loc, Place] = field(default_factory=dict)
    problems: list[tuple[Place, str]] = field(default_factory=list)

    def place(self, path: Loc) -> Place:
        """Where ``path`` was given; if it was not, the place of the nearest enclosing value."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places[path]

    def say(self, path: Loc, text: str) -> None:
        """Record a problem with the value at ``path``."""
        place = self.place(path)
        origin = f" (written on line {place.written})" if place.written else ""
        self.problems.append((place, f"{path_text(path)}: {text}{origin}" if path else text))

    def text(self) -> str:
        """All problems, one per line, in the order of their places."""
        ordered = sorted(self.problems, key=lambda problem: problem[0].line)
        return "\n".join(dict.fromkeys(f"{place}: {text}" for place, text in ordered))


def read_yaml(text: str, source: str) -> Document:
    r"""Read one YAML document. Aliases and merge keys (``<<``) become copies.

    Args:
        text: the YAML.
        source: name of the document in messages.

    Returns:
        The document. Invalid YAML, duplicate keys and tags for more than plain data are among its ``problems``; nothing
        is raised.

    Example:
        >>> document = read_yaml("data:\n  batch: 64", "recipe.yaml")
        >>> document.data, str(document.place(("data", "batch")))
        ({'data': {'batch': 64}}, 'recipe.yaml:2')
    """
    document = Document(places={(): Place(source, 1)})
    try:
        composer = _Composer(text)
        node = composer.get_single_node()
        if node is not None:
            document.data = _Builder(document, composer).value(node, (), None)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        parts = (getattr(error, "context", None), getattr(error, "problem", None))
        reason = ", ".join(part for part in parts if part) or "it contains characters that YAML does not allow"
        document.problems.append((Place(source, mark.line + 1 if mark else 1), f"invalid YAML: {reason}"))
    except RecursionError:
        document.problems.append((Place(source, 1), "the YAML is nested too deeply"))
    return document


class _Composer(yaml.SafeLoader):
    """Composes nodes; an alias becomes a copy of its anchor's node.

    Attributes:
        alias_lines: the line of the alias that each such copy replaces, by the copy's id.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML looks for it on the class)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.alias_lines: dict[int, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML has no annotation there
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            node = copy.copy(node)  # every use of the anchor has its own line
            self.alias_lines[id(node)] = _line(event)
        return node


for _name, (_pattern, _first) in PLAIN.items():
    _Composer.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _first)
_Composer.add_implicit_resolver(_MERGE, re.compile(r"<<$"), ["<"])


class _Builder:
    """Turns nodes into plain data and records their places. ``use`` is the line of the outermost alias around a node."""

    def __init__(self, document: Document, composer: _Composer) -> None:
        self.document = document
        self.composer = composer
        self.open: list[int] = []  # ids of the contents of the collections being read
        self.count = 0

    def value(self, node: Node, path: Loc, use: int | None) -> Any:
        """Convert the ``node`` at ``path`` to plain data."""
        self.count += 1
        if self.count > _MAX_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"its aliases expand to more than {_MAX_VALUES} values", problem_mark=node.start_mark
            )
        use = use or self.composer.alias_lines.get(id(node))
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if id(node.value) in self.open:
            raise yaml.MarkedYAMLError(problem="an alias refers to a value around it", problem_mark=node.start_mark)
        kind = "seq" if isinstance(node, SequenceNode) else "map"
        if node.tag != f"tag:yaml.org,2002:{kind}":
            self.document.say(path, f"unsupported tag {node.tag}; only plain data is read")
        self.open.append(id(node.value))
        data = self._sequence(node, path, use) if isinstance(node, SequenceNode) else self._mapping(node, path, use)
        self.open.pop()
        return data

    def _scalar(self, node: ScalarNode, path: Loc) -> Any:
        try:
            if node.tag.removeprefix("tag:yaml.org,2002:") in PLAIN:
                return self.composer.construct_object(node)
            self.document.say(path, f"unsupported tag {node.tag}; only plain data is read")
        except (ValueError, KeyError):
            self.document.say(path, f"{shown(node.value)} does not fit its tag {node.tag}")
        return None

    def _sequence(self, node: SequenceNode, path: Loc, use: int | None) -> list[Any]:
        for index, item in enumerate(node.value):
            self._note((*path, index), _line(item), item, use)
        return [self.value(item, (*path, index), use) for index, item in enumerate(node.value)]

    def _mapping(self, node: Node, path: Loc, use: int | None) -> dict[Any, Any]:
        data: dict[Any, Any] = {}
        for key, line, value, inner in self._pairs(node, path, use):
            if key not in data:
                self._note((*path, key), line, value, inner)
                data[key] = self.value(value, (*path, key), inner)
        return data

    def _pairs(self, node: Node, path: Loc, use: int | None) -> Iterator[tuple[Any, int, Node, int | None]]:
        """Keys with their lines and values: the mapping's own first, then the ones merged by ``<<``."""
        first_lines: dict[Any, int] = {}
        merged: list[tuple[Node, int]] = []
        for key_node, value in node.value:
            line = _line(key_node)
            if key_node.tag == _MERGE:
                items = value.value if isinstance(value, SequenceNode) else [value]
                merged += [(item, line) for item in items]
                continue
            key = self._scalar(key_node, path) if isinstance(key_node, ScalarNode) else None
            if key is None:
                self._complain(path, use or line, "expected a name or a number as the key")
            elif key in first_lines:
                self._complain((*path, key), use or line, f"duplicate key, first given on line {first_lines[key]}")
            else:
                first_lines[key] = line
                yield key, line, value, use
        for item, line in merged:
            if not isinstance(item, MappingNode):
                self._complain(path, use or line, "expected a mapping after '<<'")
            elif id(item.value) in self.open:
                self._complain(path, use or line, "'<<' merges a mapping into itself")
            else:
                yield from self._pairs(item, path, use or line)

    def _note(self, path: Loc, line: int, node: Node, use: int | None) -> None:
        """Record the line of ``path``: the line of its key or item, or of the alias that includes it."""
        alias = self.composer.alias_lines.get(id(node))
        position = use or (alias if isinstance(path[-1], int) and alias else line)
        written = _line(node) if alias else line
        self.document.places[path] = Place(
            self.document.places[()].source, position, None if written == position else written
        )

    def _complain(self, path: Loc, line: int, text: str) -> None:
        place = Place(self.document.places[()].source, line)
        self.document.problems.append((place, f"{path_text(path)}: {text}" if path else text))


def _line(node: Any) -> int:
    """The line, from 1, on which a node or an event begins."""
    return int(node.start_mark.line) + 1
