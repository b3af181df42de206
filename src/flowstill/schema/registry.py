"""Things found by name: those of this package, of installed packages, and of the modules that a recipe uses."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from flowstill.errors import FlowstillError, RecipeError, did_you_mean

T = TypeVar("T")
GROUP = "flowstill"  # of the entry points by which an installed package adds to the registries

_log = logging.getLogger("flowstill")


class Registry(Mapping[str, T]):
    """One kind of thing by name, filled by its decorator as modules are imported.

    The modules of ``homes`` and the entry points of installed packages (group ``flowstill``) are imported when the
    first name is looked up, so importing flowstill stays quick.

    Args:
        kind: what messages call one of them, such as ``knowledge``.
        homes: the packages whose modules hold the built-in ones.
        error: what an unknown or taken name raises.

    every: all registries there are.
    """

    every: ClassVar[list[Registry[Any]]] = []

    def __init__(self, kind: str, *homes: str, error: type[FlowstillError] = RecipeError) -> None:
        self.kind, self.homes, self.error = kind, homes, error
        self._entries: dict[str, T] = {}
        self._origins: dict[str, str] = {}
        self.every.append(self)

    def add(self, name: str, value: T, origin: str) -> None:
        """Enter ``value`` as ``name``; ``origin`` is the module that defines it.

        Raises:
            FlowstillError: the name belongs to something from another module.
        """
        if not isinstance(name, str) or not name:
            raise self.error(f"Expected a name for the {self.kind}. Received: {name!r}.")
        taken = self._origins.get(name, origin)
        if taken != origin:
            raise self.error(
                f"There is already a {self.kind} {name!r}, from {_place(taken)}; {_place(origin)} registers another. "
                "Rename one of them."
            )
        self._entries[name], self._origins[name] = value, origin

    def find(self, name: str) -> T:
        """The thing called ``name``.

        Raises:
            FlowstillError: unknown name; the text gives the nearest one.
        """
        self._load()
        if name not in self._entries:
            raise self.error(f"Unknown {self.kind} {name!r}. {did_you_mean(name, self)}".rstrip())
        return self._entries[name]

    def __getitem__(self, name: str) -> T:
        self._load()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._entries)

    def __len__(self) -> int:
        self._load()
        return len(self._entries)

    def _load(self) -> None:
        for home in self.homes:
            import_modules(home)
        import_entry_points()


def _place(origin: str) -> str:
    """The file of a module that a recipe uses by its path, which has a private name; another module's name."""
    if not origin.startswith("_"):
        return origin
    return getattr(sys.modules.get(origin), "__file__", None) or origin


@functools.cache
def import_modules(package: str) -> None:
    """Import all modules directly inside ``package``."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


@functools.cache
def import_entry_points() -> None:
    """Import what installed packages name in the group ``flowstill``; one that fails is left out with a warning."""
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # somebody else's code, which must not keep this package from working
            _log.warning(
                "The installed package %s adds %r to flowstill, which cannot be imported (%s: %s). Fix or uninstall it.",
                entry.dist.name if entry.dist else "?",
                entry.value,
                type(error).__name__,
                error,
            )
