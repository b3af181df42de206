"""A whole recipe for each named method, without anything that the reader of recipes adds by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import yaml

from flowstill.recipes.dump import plain
from flowstill.recipes.recipe import Job, Stage
from flowstill.transfer.methods import METHODS

SECTIONS = 3  # in which the two networks of a recipe pair
HEAD = """\
data: {name: cifar10, augment: {crop: 4}}
teacher: {network: resnet26, weights: teacher.safetensors}
student: resnet8
"""


def recipe(method: str) -> str:
    """A recipe that can be copied: the method's stages, for a ResNet-26 and a ResNet-8."""
    stages = [shortened(plain(stage), partial(_is, stage)) for stage in METHODS[method].stages(SECTIONS)]
    text = yaml.safe_dump({"stages": stages}, sort_keys=False, default_flow_style=None, width=120)
    return f"```yaml\nname: {method}\n{HEAD}{text}```"


def _is(stage: Stage, data: Any) -> bool:
    """Whether the data is read as this stage."""
    try:
        return Job("student", stages=(data,), teacher="teacher").stages == (stage,)
    except ValueError:
        return False


def shortened(data: Any, same: Callable[[Any], bool]) -> Any:
    """The shortest plain data that is still ``same``.

    Left out are keys with their default, the rest of a mapping beside its name, and a list around a single item.
    """
    for shorter in _shorter(data):
        if same(shorter):
            return shortened(shorter, same)
    if not isinstance(data, (dict, list)):
        return data
    data = data.copy()

    def same_with(key: Any, part: Any) -> bool:
        whole = data.copy()
        whole[key] = part
        return same(whole)

    for key in data if isinstance(data, dict) else range(len(data)):
        data[key] = shortened(data[key], partial(same_with, key))
    return data


def _shorter(data: Any) -> Iterator[Any]:
    if isinstance(data, list) and len(data) == 1:
        yield data[0]
    if isinstance(data, dict):
        if list(data) == ["name"]:
            yield data["name"]
        yield from ({other: data[other] for other in data if other != key} for key in data)
