"""Write a recipe as YAML that loads back to an equal recipe."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from flowstill.errors import RecipeError
from flowstill.recipes.places import PLAIN
from flowstill.recipes.recipe import Constant, Milestones, Player, Recipe, Stage, Term, Update
from flowstill.transfer.stages import PLAYER_KEYS, UPDATE_KEYS


class _Dumper(yaml.SafeDumper):
    """Quotes text that this package's reader, or any other, would read as a number or a boolean."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first) in PLAIN.items():
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _first)


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as YAML, with every value and in the usual short forms.

    Args:
        recipe: the recipe.

    Returns:
        The YAML text.

    Raises:
        RecipeError: a value has no YAML form, such as an object in a network's options.

    Example:
        >>> from flowstill.recipes.recipe import Data, Job, Recipe
        >>> dump_recipe(Recipe("r", Data("digits"), {"student": Job("resnet8")})).splitlines()[:3]
        ['name: r', 'data:', '  name: digits']
    """
    try:
        return yaml.dump(
            plain(recipe), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True
        )
    except yaml.representer.RepresenterError as error:
        raise RecipeError(
            f"The recipe cannot be written as YAML: expected mappings, lists, numbers and text, got {error.args[-1]!r}."
        ) from None


def plain(value: Any) -> Any:
    """Convert a recipe, or a part of one, to mappings, lists, numbers and text.

    Args:
        value: the recipe or part. Values of other types are returned unchanged.

    Example:
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
    """A term as its knowledge's mapping plus the weight; nested if the knowledge has a ``weight`` too."""
    fields = _fields(term)
    knowledge = fields.pop("knowledge")
    return fields | {"knowledge": knowledge} if fields.keys() & knowledge.keys() else knowledge | fields


def _stage(stage: Stage) -> dict[str, Any]:
    """A stage in the short form if it has one player and one update, else with ``players`` and ``cycle``."""
    fields = _fields(stage)
    player, update = stage.players.get("student"), stage.updates[0]
    single = len(stage.players) == len(stage.updates) == 1
    if player is None or not single or not (_covers(player, PLAYER_KEYS) and _covers(update, UPDATE_KEYS)):
        return fields
    del fields["players"], fields["cycle"]
    for part, keys in ((player, PLAYER_KEYS), (update, UPDATE_KEYS)):
        fields |= {key: plain(getattr(part, key)) for key in keys}
    return fields


def _covers(part: Player | Update, keys: tuple[str, ...]) -> bool:
    """Whether all fields but ``keys`` have their defaults, so that the short form says everything."""
    return part == type(part)(**{key: getattr(part, key) for key in keys})
