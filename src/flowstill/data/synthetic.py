"""Images of noise in the shape of a known set, to try a recipe without its data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from flowstill.data.dataset import ImageData
from flowstill.data.keyed import Purpose, bits, key_of
from flowstill.data.named import SYNTHETIC, Facts, data_facts
from flowstill.data.order import Rows
from flowstill.data.spec import Data

TESTED = 20  # images
SPLITS = ("train", "test")


def is_synthetic(name: str) -> bool:
    """Whether the name asks for synthetic images.

    >>> is_synthetic("synthetic:cifar10"), is_synthetic("cifar10")
    (True, False)
    """
    return name.startswith(SYNTHETIC)


class Noise:
    """Uniform noise; each image is a function of its split and row."""

    fingerprint = "synthetic"

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._shape = shape

    def batches(
        self, split: str, plan: Iterable[Rows], *, seed: int | None, device: torch.device
    ) -> Iterator[tuple[Rows, Tensor]]:
        """The images of each batch of ``plan``, (B, C, H, W) uint8 on the device."""
        channels, height, width = self._shape
        for rows in plan:
            places = torch.arange(channels * height * width)
            noise = bits(key_of(SPLITS.index(split), Purpose.SAMPLE), rows.index[:, None], places)
            yield rows, (noise & 255).to(torch.uint8).view(-1, channels, height, width).to(device)

    def statistics(self, rows: Tensor) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of uniform noise from 0 to 255."""
        return [127.5] * self._shape[0], [(256**2 / 12) ** 0.5] * self._shape[0]


def synthetic_data(spec: Data, seed: int = 0) -> ImageData:
    """A set of noise for ``synthetic:NAME``: shape and classes of NAME; for an unknown set, 3 x 32 x 32 and 10.

    There are as many training images as ``spec`` needs; their labels run through the classes in turn.
    """
    facts = data_facts(spec) or Facts(
        (spec.channels or 3, spec.size or 32, spec.size or 32), len(spec.classes or ()) or 10
    )
    count = facts.classes + max(spec.batch, spec.labels or 0) + spec.hold_out
    labels = {"train": torch.arange(count) % facts.classes, "test": torch.arange(TESTED) % facts.classes}
    classes = spec.classes or tuple(map(str, range(facts.classes)))
    data = ImageData(spec, Noise(facts.shape), facts.shape, classes, labels, seed)
    data.synthetic = True
    return data
