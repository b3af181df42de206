"""Images decoded once, kept as uint8 on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor

from flowstill.data.decode import Form
from flowstill.data.order import Rows, in_order
from flowstill.data.splits import Split
from flowstill.data.statistics import channel_statistics
from flowstill.data.streaming import FORKS, Streamed, processors

CHUNK = 256  # images that a process decodes at a time
WORTH_A_WORKER = 2000  # images: fewer take less time than a process needs to start
CPU = torch.device("cpu")
HELD_OUT = "held out"  # training images as test images: their middle alone


class Decoded:
    """Both splits of a set, decoded.

    Raises:
        DataError: an image cannot be used; the text names the first.
    """

    def __init__(self, splits: dict[str, Split], form: Form) -> None:
        whole = replace(form, share=1.0)
        self._pixels = {
            CPU: {name: decode(split, whole if name == "train" else form) for name, split in splits.items()}
        }
        self._labels = {name: split.labels for name, split in splits.items()}
        self._held_out = partial(decode, splits["train"], form) if form.share < 1 else None

    def batches(
        self, split: str, plan: Iterable[Rows], *, seed: int | None, device: torch.device
    ) -> Iterator[tuple[Rows, Tensor]]:
        """The images of each batch of ``plan``, (B, C, H, W) uint8 on the device; the whole set stays there."""
        if seed is None and split == "train" and self._held_out:
            split = HELD_OUT
            if split not in self._pixels[CPU]:
                self._pixels = {CPU: {**self._pixels[CPU], split: self._held_out()}}
        if device not in self._pixels:
            self._pixels[device] = {name: pixels.to(device) for name, pixels in self._pixels[CPU].items()}
        on_device = self._pixels[device][split]
        for rows in plan:
            yield rows, on_device.index_select(0, rows.index.to(device, non_blocking=True))

    def statistics(self, rows: Tensor) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over the training images ``rows``, in units of 0 to 255."""
        return channel_statistics(self._pixels[CPU]["train"][some] for some in torch.split(rows, CHUNK))

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all pixels and labels."""
        digest = hashlib.sha256()
        for name, labels in sorted(self._labels.items()):
            pixels = self._pixels[CPU][name]
            digest.update(f"{name} {tuple(pixels.shape)}".encode())
            digest.update(pixels.numpy().data)
            digest.update(labels.numpy().data)
        return digest.hexdigest()


def decode(split: Split, form: Form) -> Tensor:
    """All images of a split, (N, C, H, W) uint8, in several processes if there are enough of them.

    Raises:
        DataError: bad input.
    """
    pixels = torch.empty((len(split), *form.shape), dtype=torch.uint8)
    workers = min(processors(), len(split) // WORTH_A_WORKER) if FORKS else 0
    encoded = Streamed({split.place: split}, form, workers=workers, random_areas=False)
    plan = in_order(torch.arange(len(split)), batch=CHUNK)
    for rows, some in encoded.batches(split.place, plan, seed=None, device=CPU):
        pixels[rows.index] = some
    return pixels
