"""A data set ready for training: batches on the device, augmented and normalised, the same in every process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor

from flowstill.data.augment import changed, draw, view_numbers
from flowstill.data.batch import Batch
from flowstill.data.keyed import Purpose, key_of
from flowstill.data.named import refuse_unknown
from flowstill.data.order import Rows, batches, in_order, stratified, with_views
from flowstill.data.spec import Data
from flowstill.errors import DataError

Stream = Literal["labelled", "all"]


class Images(Protocol):
    """Where pixels come from: ``memory.Decoded`` or ``streaming.Streamed``."""

    def batches(
        self, split: str, plan: Iterable[Rows], *, seed: int | None, device: torch.device
    ) -> Iterator[tuple[Rows, Tensor]]:
        """The images of each batch of ``plan``, (B, C, H, W) uint8 on the device.

        Args:
            seed: for what is drawn while decoding; None decodes them as for testing.
        """

    def statistics(self, rows: Tensor) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over the training images ``rows``, in units of 0 to 255."""

    @property
    def fingerprint(self) -> str:
        """A digest of the content."""


class ImageData:
    """Training and test images of one set, made by ``open_data``.

    Attributes:
        spec: what the recipe says of the data.
        shape: (C, H, W) of an image.
        classes: names of the classes, by number.
        mean: of each channel over the training images (or from ``spec``), as a share of 255.
        std: standard deviation, likewise. Batches are normalised with both.
        seed: of the held-out images, the labelled images and the fixed views.
        synthetic: whether the images are noise, to try a recipe with.
    """

    synthetic = False

    def __init__(
        self,
        spec: Data,
        images: Images,
        shape: tuple[int, int, int],
        classes: tuple[str, ...],
        labels: dict[str, Tensor],
        seed: int,
    ) -> None:
        self.spec, self.shape, self.seed, self._images = spec, shape, seed, images
        self.classes, self._labels = chosen_classes(spec, classes, labels)
        self._train_rows = _rows_with_class(self._labels["train"])
        if spec.hold_out:
            self._train_rows, self._test_rows, self._test_split = *self._hold_out(), "train"
        else:
            self._test_rows, self._test_split = _rows_with_class(self._labels["test"]), "test"
        self.labelled_rows()
        mean, std = (spec.mean, spec.std) if spec.mean and spec.std else images.statistics(self._train_rows)
        self.mean = tuple(value / 255 for value in mean)
        self.std = tuple(value / 255 for value in std)

    def _hold_out(self) -> tuple[Tensor, Tensor]:
        """The rows that remain to train on, and those held out.

        Raises:
            DataError: a class has none left.
        """
        rows, count = self._train_rows, self.spec.hold_out
        labels = self._labels["train"][rows]
        held = stratified(labels, count, key=key_of(self.seed, Purpose.HOLD_OUT), proportional=True)
        mask = torch.ones(len(rows), dtype=torch.bool)
        mask[held] = False
        left = labels[mask].bincount(minlength=len(self.classes))
        if not left.all():
            raise DataError(
                f"'hold_out' is {count}, which leaves no training image of class {self.classes[int(left.argmin())]!r}: "
                f"{self._called} has {len(labels)} training images. Hold out fewer."
            )
        return rows[mask], rows[held]

    @property
    def _called(self) -> str:
        """The name of the images in messages."""
        return f"the chosen part of {self.spec.name!r}" if self.spec.classes else repr(self.spec.name)

    @property
    def train_size(self) -> int:
        """Number of training images, labelled or not."""
        return len(self._train_rows)

    @property
    def rows(self) -> int:
        """Number of rows of the training split, including held-out images and other classes; bounds ``Batch.index``."""
        return len(self._labels["train"])

    @property
    def labelled_size(self) -> int:
        """Number of training images whose labels the task may use."""
        return self.spec.labels or self.train_size

    @property
    def test_size(self) -> int:
        """Number of test images."""
        return len(self._test_rows)

    @property
    def fingerprint(self) -> str:
        """A digest of images and labels before augmentation, whichever folder they are in."""
        return self._images.fingerprint

    def labelled_rows(self, labels: int | None = None) -> Tensor:
        """The rows of the training set whose labels the task may see, (n,) int64, ascending.

        Args:
            labels: how many; None for the specification's number. Classes are as equal in number as possible, and a
                smaller number takes a subset of a larger one's.

        Raises:
            DataError: there are fewer than classes, or more than training images.
        """
        count = labels or self.spec.labels
        if count is None:
            return self._train_rows
        if not len(self.classes) <= count <= self.train_size:
            raise DataError(
                f"'labels' is {count}, but {self._called} has {len(self.classes)} classes and {self.train_size} "
                f"training images. Choose from {len(self.classes)} to {self.train_size}."
            )
        chosen = stratified(self._labels["train"][self._train_rows], count, key=key_of(self.seed, Purpose.LABELS))
        return self._train_rows[chosen]

    def train_batches(
        self,
        stream: Stream,
        *,
        batch: int,
        steps: int,
        start: int = 0,
        seed: int = 0,
        labels: int | None = None,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Batch]:
        """``steps`` batches of an endless sequence, from number ``start`` on.

        Args:
            stream: "labelled", the images whose labels the task may see, or "all", where the labels of the others are
                -1.
            seed: of order and augmentation.
            labels: how many, instead of the specification's.
            rank: the processes that share each batch; their parts, in the order of ranks, are what one process would
                see.
            world: likewise.

        Raises:
            DataError: an image cannot be read, or a batch has fewer images than there are processes.
        """
        labelled = self.labelled_rows(labels)
        known = torch.full_like(self._labels["train"], -1)
        known[labelled] = self._labels["train"][labelled]
        rows = labelled if stream == "labelled" else self._train_rows
        plan = batches(rows, batch=batch, start=start, steps=steps, seed=seed, rank=rank, world=world)
        return self._augmented(plan, known, start, start + steps, seed, torch.device(device))

    def _augmented(
        self, plan: Iterable[Rows], known: Tensor, start: int, steps: int, seed: int, device: torch.device
    ) -> Iterator[Batch]:
        mean, std = self._scale(device)
        augment = self.spec.augment
        if augment.views:  # what an image's views are does not depend on who asks
            plan, seed = with_views(plan, augment.views, seed), self.seed
        for step, (taken, pixels) in enumerate(self._images.batches("train", plan, seed=seed, device=device), start):
            drawn = draw(augment, seed, taken.index, taken.turn)
            images = changed(pixels, drawn, mean, std)
            shown = known[taken.index].to(device, non_blocking=True)
            view = view_numbers(augment, taken, drawn)
            yield Batch(images, shown, taken.index, taken.epoch, step, steps, view)

    def test_batches(
        self, *, batch: int, device: torch.device | str = "cpu", rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """All test images once: (B, C, H, W) float32, normalised, and their labels, (B,) int64, both on the device.

        The last batch may be smaller.

        Args:
            rank: each process sees its contiguous share of the images.
            world: likewise.
        """
        device = torch.device(device)
        labels = self._labels[self._test_split]
        plan = in_order(self._test_rows, batch=batch, rank=rank, world=world)
        mean, std = self._scale(device)
        for taken, pixels in self._images.batches(self._test_split, plan, seed=None, device=device):
            yield changed(pixels, None, mean, std), labels[taken.index].to(device, non_blocking=True)

    def test_sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Up to ``count`` test images, spread over the classes and the same each time, normalised, with their labels.

        Returns:
            (N, C, H, W) float32 and (N,) int64, on the CPU.
        """
        labels = self._labels[self._test_split]
        chosen = stratified(labels[self._test_rows], count, key=key_of(self.seed, Purpose.SAMPLE), proportional=True)
        rows, device = self._test_rows[chosen], torch.device("cpu")
        mean, std = self._scale(device)
        taken = self._images.batches(self._test_split, in_order(rows, batch=64), seed=None, device=device)
        return torch.cat([changed(pixels, None, mean, std) for _, pixels in taken]), labels[rows]

    def _scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return 255 * torch.tensor(self.mean, device=device), 255 * torch.tensor(self.std, device=device)


def _rows_with_class(labels: Tensor) -> Tensor:
    """The rows whose label is one of the classes."""
    return (labels >= 0).nonzero().flatten()


def chosen_classes(
    spec: Data, classes: tuple[str, ...], labels: dict[str, Tensor]
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """The classes that the specification asks for, and the labels in their numbers, -1 for images of other classes.

    Args:
        classes: all that the set has.
        labels: likewise.

    Raises:
        DataError: a class that the set does not have.
    """
    if spec.classes is None:
        return classes, labels
    refuse_unknown(spec, classes)
    numbers = torch.full((len(classes),), -1)
    for number, name in enumerate(spec.classes):
        numbers[classes.index(name)] = number
    return spec.classes, {split: numbers[before] for split, before in labels.items()}
