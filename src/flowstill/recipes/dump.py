"""A recipe as YAML text that loads back to an equal recipe."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from flowstill.errors import RecipeError
from flowstill.recipes.places import PLAIN
from flowstill.recipes.recipe import Constant, Milestones, Player, Recipe, Stage, Term, Update
from flowstill.transfer.stages import PLAYER_KEYS, UPDATE_KEYS


class _Dumper(yaml.SafeDumper):
    """Quotes text that this package's reader, or any other, would take for a number or a boolean."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first) in PLAIN.items():
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _first)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every value written out, in the short forms that people write.

    Raises: RecipeError if it holds something that plain data cannot say, such as an object in a network's options.

    >>> from flowstill.recipes.recipe import Data, Job, Recipe
    >>> dump_recipe(Recipe("r", Data("digits"), {"student": Job("resnet8")})).splitlines()[:3]
    ['name: r', 'data:', '  name: digits']
    """
    try:
        return yaml.dump(
            plain(recipe), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True
        )
    except yaml.representer.RepresenterError as error:
        raise RecipeError(f"The recipe cannot be written as YAML: {error.args[-1]!r} is no plain data.") from None


def plain(value: Any) -> Any:
    """A recipe, or a part of one, as mappings, lists, numbers and text.

    >>> plain(Term("labels", 0.5))
    {'name': 'labels', 'smoothing': 0.0, 'weight': 0.5}
    """
    if isinstance(value, Constant):
        return value.value
    if isinstance(value, Milestones):
        return dict(value.milestones)
    if isinstance(value, Term):
        return _term(value)
    if isinstance(value, Stage):
        return _stage(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}


def _term(term: Term) -> dict[str, Any]:
    """A term as its knowledge's mapping with the weight in it, where the knowledge has no weight of its own."""
    whole = _fields(term)
    knowledge = whole.pop("knowledge")
    return whole | {"knowledge": knowledge} if whole.keys() & knowledge.keys() else knowledge | whole


def _stage(stage: Stage) -> dict[str, Any]:
    """A stage of one player and one update with the keys of both in it, any other with its players and its cycle."""
    whole = _fields(stage)
    player, update = stage.players.get("student"), stage.updates[0]
    alone = len(stage.players) == len(stage.updates) == 1
    if player is None or not alone or not (_says_all(player, PLAYER_KEYS) and _says_all(update, UPDATE_KEYS)):
        return whole
    del whole["players"], whole["cycle"]
    for part, keys in ((player, PLAYER_KEYS), (update, UPDATE_KEYS)):
        whole |= {key: plain(getattr(part, key)) for key in keys}
    return whole


def _says_all(part: Player | Update, keys: tuple[str, ...]) -> bool:
    """Whether a part of a stage has its default in every field but ``keys``."""
    return part == type(part)(**{key: getattr(part, key) for key in keys})
