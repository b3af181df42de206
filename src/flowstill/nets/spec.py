"""The network of a job: its name and options."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from flowstill.nets.preprocessing import Preprocessing
from flowstill.schema import specification
from flowstill.schema.text import Text


@specification
class Net:
    """A network by name: ``resnet8``, ``timm:resnet18``, ``torchvision:vgg11``, ``file.py:factory``.

    Attributes:
        name: of the network. ``object:CLASS`` stands for one that was given as a Python object and has no name.
        options: keyword arguments of the constructor, such as ``width: 2``, ``pretrained: true`` or ``init: msra``.
        preprocessing: how images become its input. What is None, or left out, comes from the file of its weights, from
            timm or torchvision, or else from the run's data.
    """

    name: Text
    options: dict[str, Any] = Field(default_factory=dict)
    preprocessing: Preprocessing | None = None


def is_object(name: str) -> bool:
    """Whether the name stands for a network that was given as a Python object.

    >>> is_object("object:ResNet"), is_object("resnet8")
    (True, False)
    """
    return name.startswith("object:")
