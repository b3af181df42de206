"""YAML read into plain data, with the line that every key and every item stands on."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# Not ruamel.yaml: it gives an item's alias, a merge and a second duplicate no line, reads dates and 0x10 as more than
# text, accepts tags and builds alias bombs.
import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from flowstill.schema.problems import Loc, path_text, shown

_MOST_VALUES = 100_000  # a few aliases of aliases could ask for billions
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:e[-+]?[0-9]+)?|\.[0-9]+(?:e[-+]?[0-9]+)?|[0-9]+e[-+]?[0-9]+|\.inf)$|\.nan$", re.I
)
PLAIN = {  # YAML 1.2's reading of unquoted text: 1e-3 is a number, and yes, on and 010 are none
    "null": (re.compile(r"~$|null$|$", re.I), ["~", "n", "N", ""]),
    "bool": (re.compile(r"true$|false$", re.I), list("tTfF")),
    "int": (re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")),
    "float": (_FLOAT, list("-+.0123456789")),
    "str": (re.compile(r"(?!)"), []),
}
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Place:
    """Where a value was given: a line of a file, or an option of the command line (line 0).

    written: the line on which the value itself stands, where an alias at ``line`` brings it in.
    """

    source: str
    line: int = 0
    written: int | None = None

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass
class Document:
    """Plain data, the place of everything in it, and what is wrong with it so far."""

    data: Any = None
    places: dict[Loc, Place] = field(default_factory=dict)
    problems: list[tuple[Place, str]] = field(default_factory=list)

    def place(self, path: Loc) -> Place:
        """Where ``path`` was given, or the nearest value around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places[path]

    def say(self, path: Loc, text: str) -> None:
        """Note a problem with what stands at ``path``."""
        place = self.place(path)
        written = f" (written on line {place.written})" if place.written else ""
        self.problems.append((place, f"{path_text(path)}: {text}{written}" if path else text))

    def text(self) -> str:
        """All problems, a line for each, in the order of the lines that they are on."""
        ordered = sorted(self.problems, key=lambda problem: problem[0].line)
        return "\n".join(dict.fromkeys(f"{place}: {text}" for place, text in ordered))


def read_yaml(text: str, source: str) -> Document:
    r"""Read one YAML document; ``source`` is its name in messages.

    Aliases and merge keys (``<<``) become copies. Nothing is raised: text that is no YAML, a key given twice, or a tag
    that asks for more than plain data is a problem of the document.

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
        about = ", ".join(part for part in parts if part) or "it holds characters that no text has"
        document.problems.append((Place(source, mark.line + 1 if mark else 1), f"this cannot be read as YAML: {about}"))
    except RecursionError:
        document.problems.append((Place(source, 1), "this is nested too deeply to be read"))
    return document


class _Composer(yaml.SafeLoader):
    """Composes nodes; an alias becomes a copy of its anchor's node. used: the line of each such copy's alias, by id."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML looks for it on the class)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.used: dict[int, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML has no annotation there
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            node = copy.copy(node)  # the next use of the anchor has a line of its own
            self.used[id(node)] = _line(event)
        return node


for _name, (_pattern, _first) in PLAIN.items():
    _Composer.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _first)
_Composer.add_implicit_resolver(_MERGE, re.compile(r"<<$"), ["<"])


class _Builder:
    """Turns nodes into plain data and notes their places. ``use`` is the line of the outermost alias around a node."""

    def __init__(self, document: Document, composer: _Composer) -> None:
        self.document = document
        self.composer = composer
        self.around: list[int] = []  # the collections that are being read, by the id of their content
        self.count = 0

    def value(self, node: Node, path: Loc, use: int | None) -> Any:
        """The data of ``node``, which stands at ``path``."""
        self.count += 1
        if self.count > _MOST_VALUES:
            raise yaml.MarkedYAMLError(problem="its aliases ask for too many values", problem_mark=node.start_mark)
        use = use or self.composer.used.get(id(node))
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if id(node.value) in self.around:
            raise yaml.MarkedYAMLError(
                problem="an alias stands inside what it stands for", problem_mark=node.start_mark
            )
        kind = "seq" if isinstance(node, SequenceNode) else "map"
        if node.tag != f"tag:yaml.org,2002:{kind}":
            self.document.say(path, f"the tag {node.tag} asks for more than plain data")
        self.around.append(id(node.value))
        read = self._sequence(node, path, use) if isinstance(node, SequenceNode) else self._mapping(node, path, use)
        self.around.pop()
        return read

    def _scalar(self, node: ScalarNode, path: Loc) -> Any:
        try:
            if node.tag.removeprefix("tag:yaml.org,2002:") in PLAIN:
                return self.composer.construct_object(node)
            self.document.say(path, f"the tag {node.tag} asks for more than plain data")
        except (ValueError, KeyError):
            self.document.say(path, f"{shown(node.value)} is not what its tag {node.tag} says")
        return None

    def _sequence(self, node: SequenceNode, path: Loc, use: int | None) -> list[Any]:
        for index, item in enumerate(node.value):
            self._note((*path, index), _line(item), item, use)
        return [self.value(item, (*path, index), use) for index, item in enumerate(node.value)]

    def _mapping(self, node: Node, path: Loc, use: int | None) -> dict[Any, Any]:
        read: dict[Any, Any] = {}
        for key, line, value, inner in self._pairs(node, path, use):
            if key not in read:
                self._note((*path, key), line, value, inner)
                read[key] = self.value(value, (*path, key), inner)
        return read

    def _pairs(self, node: Node, path: Loc, use: int | None) -> Iterator[tuple[Any, int, Node, int | None]]:
        """Keys with their lines and values: the mapping's own ones first, then those that ``<<`` merges into it."""
        first: dict[Any, int] = {}
        merged: list[tuple[Node, int]] = []
        for key_node, value in node.value:
            line = _line(key_node)
            if key_node.tag == _MERGE:
                items = value.value if isinstance(value, SequenceNode) else [value]
                merged += [(item, line) for item in items]
                continue
            key = self._scalar(key_node, path) if isinstance(key_node, ScalarNode) else None
            if key is None:
                self._complain(path, use or line, "a key is a name or a number")
            elif key in first:
                self._complain((*path, key), use or line, f"this key is already given on line {first[key]}")
            else:
                first[key] = line
                yield key, line, value, use
        for item, line in merged:
            if not isinstance(item, MappingNode):
                self._complain(path, use or line, "'<<' merges mappings only")
            elif id(item.value) in self.around:
                self._complain(path, use or line, "'<<' merges a mapping into itself")
            else:
                yield from self._pairs(item, path, use or line)

    def _note(self, path: Loc, line: int, node: Node, use: int | None) -> None:
        """Remember where ``path`` is: on the line of its key or item, or of the alias that brings it in."""
        alias = self.composer.used.get(id(node))
        at = use or (alias if isinstance(path[-1], int) and alias else line)
        written = _line(node) if alias else line
        self.document.places[path] = Place(self.document.places[()].source, at, None if written == at else written)

    def _complain(self, path: Loc, line: int, text: str) -> None:
        place = Place(self.document.places[()].source, line)
        self.document.problems.append((place, f"{path_text(path)}: {text}" if path else text))


def _line(at: Any) -> int:
    """The line, counted from 1, on which a node or an event begins."""
    return int(at.start_mark.line) + 1
