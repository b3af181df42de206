"""Images decoded when their batch comes, in worker processes."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flowstill.data.decode import Form, open_image, random_area, to_pixels
from flowstill.data.keyed import Purpose, bits, key_of
from flowstill.data.order import Rows
from flowstill.data.splits import Split
from flowstill.data.statistics import channel_statistics
from flowstill.errors import DataError

MEASURED = 2048  # training images from which mean and standard deviation are taken
FORKS = sys.platform.startswith("linux")  # whether processes can be forked safely
DIGESTED = 256  # images of each split that the fingerprint reads


class Streamed:
    """Both splits of a set, left encoded.

    Args:
        random_areas: whether training shows random areas of its images.
    """

    def __init__(self, splits: dict[str, Split], form: Form, *, workers: int, random_areas: bool) -> None:
        self._splits, self._form, self._random_areas = splits, form, random_areas
        self._workers = min(workers, processors())

    def batches(
        self, split: str, plan: Iterable[Rows], *, seed: int | None, device: torch.device
    ) -> Iterator[tuple[Rows, Tensor]]:
        """The images of each batch of ``plan``, (B, C, H, W) uint8 on the device.

        Args:
            seed: None decodes them as for testing.

        Raises:
            DataError: an image cannot be used; the text names the first.
        """
        form = self._form if seed is None else replace(self._form, share=1.0)
        images = _Images(self._splits[split], form, seed if self._random_areas else None)
        # With its own generator, since the loader would draw from the process-wide one. Forked where that is safe, since
        # spawned workers would import the caller's script, and run it if it is unguarded.
        batches: Any = plan
        loader: DataLoader[Any] = DataLoader(
            images,
            batch_sampler=batches,
            num_workers=self._workers,
            collate_fn=_unchanged,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),
            worker_init_fn=_ignore_interrupts,
            multiprocessing_context="fork" if FORKS and self._workers else None,
        )
        for rows, pixels in loader:
            if isinstance(pixels, DataError):
                raise pixels
            yield rows, pixels.to(device, non_blocking=True)

    def statistics(self, rows: Tensor) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, in units of 0 to 255, over up to 2048 of the images ``rows``."""
        random = bits(key_of(0, Purpose.SAMPLE), torch.arange(len(rows)))
        sample = rows[random.argsort(stable=True)[:MEASURED].sort().values]
        plan = (Rows(some, torch.zeros_like(some)) for some in torch.split(sample, 64))
        cpu = torch.device("cpu")
        return channel_statistics(pixels for _, pixels in self.batches("train", plan, seed=None, device=cpu))

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the form, all labels and 256 images of each split, whichever folder they are in."""
        digest = hashlib.sha256(str(self._form).encode())
        for name, split in sorted(self._splits.items()):
            digest.update(f"{name} {len(split)}".encode())
            digest.update(split.labels.numpy().data)
            for row in np.linspace(0, len(split) - 1, DIGESTED).astype(int).tolist():
                digest.update(open_image(split, row).tobytes())
        return digest.hexdigest()


class _Images(Dataset[tuple[Rows, Tensor | DataError]]):
    """Decodes whole batches in a worker process.

    Args:
        seed: of the random areas; None for the central ones.
    """

    def __init__(self, split: Split, form: Form, seed: int | None) -> None:
        self.split, self.form, self.seed = split, form, seed

    def __getitems__(self, rows: Rows) -> tuple[Rows, Tensor | DataError]:
        """A batch, or the error: raised here, it would arrive with a worker's traceback."""
        pixels = torch.empty((len(rows.index), *self.form.shape), dtype=torch.uint8)
        try:
            for target, index, turn in zip(pixels.numpy(), rows.index.tolist(), rows.turn.tolist(), strict=True):
                target[:] = self._image(index, turn)
        except DataError as error:
            return rows, error
        return rows, pixels

    def _image(self, index: int, turn: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        if self.seed is None:
            return to_pixels(self.split, index, self.form)
        image = open_image(self.split, index)
        box = random_area(image.width, image.height, self.seed, index, turn)
        return to_pixels(self.split, index, self.form, image=image, box=box)


def processors() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches all processes; only the parent handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _unchanged(batch: Any) -> Any:
    return batch
