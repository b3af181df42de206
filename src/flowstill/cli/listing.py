"""``flowstill list``."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import typer

from flowstill.cli.console import plain_table, show_table


class Kind(StrEnum):
    """What can be listed."""

    nets = "nets"
    methods = "methods"
    knowledge = "knowledge"
    data = "data"
    recipes = "recipes"


def show_list(
    what: Annotated[Kind, typer.Argument(metavar="nets|methods|knowledge|data|recipes", help="What to list.")],
) -> None:
    """List what there is to choose from."""
    rows = {Kind.nets: nets, Kind.methods: methods, Kind.knowledge: knowledge, Kind.data: data, Kind.recipes: recipes}
    heads = {Kind.methods: ("transfers", "needs of the networks", "paper"), Kind.knowledge: ("about", "paper")}
    table = plain_table("name", *heads.get(what, ("about",)))
    for row in rows[what]():
        table.add_row(*row)
    show_table(table)


def nets() -> Iterable[tuple[str, str]]:
    """Networks by name."""
    from flowstill.nets import NAME_FORMS, known_nets

    return (known_nets() | NAME_FORMS).items()


def methods() -> Iterable[tuple[str, str, str, str]]:
    """Ways to teach a student that ``distill`` can name."""
    from flowstill.transfer.methods import METHODS

    return [(name, method.transfers, method.needs, method.paper) for name, method in sorted(METHODS.items())]


def knowledge() -> Iterable[tuple[str, str, str]]:
    """Kinds of knowledge that a recipe's term can name."""
    from flowstill.transfer.knowledge import KNOWLEDGE

    kinds = dict(KNOWLEDGE)
    return [(name, kind.summary, kind.paper) for name, kind in sorted(kinds.items())]


def data() -> Iterable[tuple[str, str]]:
    """Data sets by name."""
    from flowstill.data import NAMED

    return [(name, known.about) for name, known in NAMED.items()]


def recipes() -> Iterable[tuple[str, str]]:
    """Packaged recipes."""
    from flowstill.recipes.load import recipe_names

    return recipe_names().items()
