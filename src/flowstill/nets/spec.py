"""Which network: its name and how it is made."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from flowstill.specification import specification


@specification
class Net:
    """A network by name: ``resnet8``, ``timm:resnet18``, ``torchvision:vgg11``, ``file.py:factory``.

    options: keyword arguments of its constructor, such as ``width: 2`` or ``pretrained: true``.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
