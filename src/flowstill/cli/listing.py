"""``flowstill list``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Annotated

import typer

from flowstill.cli.console import plain_table, show_table

Rows = Iterable[tuple[str, ...]]


def nets() -> Rows:
    """Networks by name."""
    from flowstill.nets import NAME_FORMS, known_nets

    return (known_nets() | NAME_FORMS).items()


def methods() -> Rows:
    """Methods that ``distill`` can name."""
    from flowstill.transfer.methods import METHODS

    return [(name, method.transfers, method.needs, method.paper) for name, method in sorted(METHODS.items())]


def knowledge() -> Rows:
    """Kinds of knowledge that a recipe's term can name."""
    from flowstill.transfer.knowledge import KNOWLEDGE

    return [(name, kind.summary, kind.paper) for name, kind in sorted(KNOWLEDGE.items())]


def procedures() -> Rows:
    """Procedures that a recipe's stages can name."""
    from flowstill.transfer.procedures import PROCEDURES

    return [
        (name, (make.__doc__ or "").partition("\n")[0].replace("``", "`")) for name, make in sorted(PROCEDURES.items())
    ]


def rules() -> Rows:
    """Rules by which the gradients of task and transfer meet."""
    from flowstill.transfer.rules import RULES

    return [(name, rule.summary) for name, rule in sorted(RULES.items())]


def data() -> Rows:
    """Data sets by name."""
    from flowstill.data import NAMED

    return [(name, known.about) for name, known in NAMED.items()]


def readers() -> Rows:
    """Readers of data folders."""
    from flowstill.data.reader import READERS

    return [(name, reader.about) for name, reader in sorted(READERS.items())]


def recipes() -> Rows:
    """Packaged recipes."""
    from flowstill.recipes.load import recipe_names

    return recipe_names().items()


# What can be listed: its rows, and the heads of the columns after the name.
_LISTS: dict[str, tuple[Callable[[], Rows], tuple[str, ...]]] = {
    "nets": (nets, ("about",)),
    "methods": (methods, ("transfers", "needs from the networks", "paper")),
    "knowledge": (knowledge, ("about", "paper")),
    "procedures": (procedures, ("about",)),
    "rules": (rules, ("about",)),
    "data": (data, ("about",)),
    "readers": (readers, ("about",)),
    "recipes": (recipes, ("about",)),
}
Kind = StrEnum("Kind", {name: name for name in _LISTS})  # type: ignore[misc]  # typer reads the choices from it


def show_list(
    kind: Annotated[Kind, typer.Argument(metavar="WHAT", help="What to list.")],
) -> None:
    """List the available networks, methods, data sets and so on."""
    rows, heads = _LISTS[kind]
    table = plain_table("name", *heads)
    for row in rows():
        table.add_row(*row)
    show_table(table)
