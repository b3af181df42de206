"""The graph that autograd records of a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

V = TypeVar("V")


def walk(last: V, parents_of: Callable[[V], Iterable[V]]) -> Iterator[tuple[V, list[V]]]:
    """Everything that ``last`` is made from: each vertex with its parents, after all of them, and ``last`` at the end.

    Not recursive, since a network's graph may be deeper than Python's stack.

    >>> [vertex for vertex, _ in walk("c", {"c": ["a", "b"], "b": ["a"], "a": []}.get)]
    ['a', 'b', 'c']
    """
    seen: set[V] = set()
    stack: list[tuple[V, list[V] | None]] = [(last, None)]
    while stack:
        vertex, parents = stack.pop()
        if parents is not None:
            yield vertex, parents
        elif vertex not in seen:
            seen.add(vertex)
            parents = list(parents_of(vertex))
            stack.append((vertex, parents))
            stack.extend((parent, None) for parent in parents)
