"""A teacher, a student and random images, put together as ``flowstill.engine.session`` does it, but for the run's folder."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import flowstill as fs
from benchmarks.measure import Options
from flowstill.data.dataset import ImageData
from flowstill.data.decode import Form
from flowstill.data.memory import Decoded
from flowstill.data.spec import Augment, Data
from flowstill.data.splits import array_split
from flowstill.engine.feed import Feed
from flowstill.engine.hardware import make_fabric
from flowstill.engine.networks import placed
from flowstill.engine.precision import Precision
from flowstill.engine.seeds import RandomSequences
from flowstill.engine.step import Step
from flowstill.engine.stored import Stores
from flowstill.engine.student import Student
from flowstill.engine.teacher import Teacher
from flowstill.features.pairs import pair_sections
from flowstill.transfer.knowledge import Setting
from flowstill.transfer.stages import Stage

SHAPE, CLASSES, BATCH = (3, 32, 32), 10, 256
CROP = Augment(crop=4, flip=True)
LONG = 100_000  # steps of a stage: more than any script takes
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def random_images(count: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[int]]:
    """(count, 32, 32, 3) uint8, and labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return pixels, [number % CLASSES for number in range(count)]


def held(count: int, augment: Augment, batch: int = BATCH) -> ImageData:
    """The same images, decoded and in memory, as ``open_data`` holds a set that fits."""
    pixels, labels = random_images(count)
    split = array_split(pixels, torch.tensor(labels), None, "random images", (("random images", count),))
    scale = {"mean": tuple(255 * m for m in MEAN), "std": tuple(255 * s for s in STD)}
    spec = Data("random", batch=batch, augment=augment, **scale)
    images = Decoded({"train": split, "test": split}, Form(SHAPE, None, None))
    names = tuple(map(str, range(CLASSES)))
    return ImageData(spec, images, SHAPE, names, {"train": split.labels, "test": split.labels}, seed=0)


class Scene:
    """What a stage needs. precision: instead of the one that is picked for this machine."""

    def __init__(
        self, asked: Options, *, images: int = 4 * BATCH, augment: Augment = CROP, precision: Precision | None = None
    ) -> None:
        self.device, self.precision = asked.device, precision or asked.precision
        self.data = held(images, augment)
        self.fabric = make_fabric(asked.device.type, 1, self.precision)
        self.channels_last = self.precision.layout == "channels_last"
        self.folder = tempfile.TemporaryDirectory()
        self.stores = Stores(self.fabric, Path(self.folder.name), self.data, self.precision)
        self.teacher = self.network("resnet26").requires_grad_(False).eval()

    def network(self, name: str) -> nn.Module:
        """Fresh, on the device; the same weights at every call."""
        torch.manual_seed(0)
        return placed(fs.create(name, num_classes=CLASSES), self.fabric, self.precision)

    def feed(self, stage: Stage) -> Feed:
        return Feed(self.fabric, self.data, stage, seed=0, channels_last=self.channels_last)

    def student(self, stage: Stage) -> Student:
        """With a ResNet-8 of its own."""
        network = self.network("resnet8")
        pairs = pair_sections(self.teacher, network, (1, *SHAPE)) if stage.reads_sections else ()
        teacher = self.teacher if stage.needs_teacher else None
        return Student(self.fabric, network, stage, pairs, Setting(teacher, network, SHAPE, CLASSES))

    def step(self, stage: Stage) -> Step:
        """The stage's steps; each call takes one."""
        student = self.student(stage)
        teacher = Teacher(self.fabric, self.teacher if stage.needs_teacher else None, self.channels_last, [student])
        teacher.stored = self.stores.open_for(teacher, [student])
        return Step(self.fabric, {"student": student}, teacher, self.feed(stage), RandomSequences(self.fabric))

    def __str__(self) -> str:
        return f"batch {BATCH}, 32x32, {self.precision}"


def steps_of(way: Callable[[], Any], count: int) -> Callable[[], None]:
    """``count`` steps in one."""

    def several() -> None:
        for _ in range(count):
            way()

    return several


class Clock:
    """Notes when each step of a run was done, in a file, for it may be called in another process. Call it ``on_step``."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, job: str, stage: str, step: int) -> None:
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            with self.file.open("a") as notes:
                notes.write(f"{job} {step} {time.perf_counter()}\n")

    def seconds(self, skipped: int = 2) -> dict[str, list[float]]:
        """How long each job's steps took, without the first few."""
        ends: dict[str, list[float]] = {}
        for line in self.file.read_text().splitlines():
            job, _, end = line.split()
            ends.setdefault(job, []).append(float(end))
        return {job: np.diff(times)[skipped:].tolist() for job, times in ends.items()}


def cifar_folder(folder: Path, count: int) -> Data:
    """Random images in the files of CIFAR-10, for runs of whole recipes; few to test on."""
    import pickle

    for number in range(1, 7):
        name, images = (f"data_batch_{number}", count // 5) if number < 6 else ("test_batch", 20)
        pixels, labels = random_images(images)
        content = {"data": pixels.reshape(images, -1), "labels": labels}
        with (folder / name).open("wb") as file:
            pickle.dump(content, file)
    return replace(Data("cifar10", augment=CROP, batch=BATCH), root=str(folder))
