"""A whole step of the FSP stage, images to weights, against a loop as it is usually written.

The reference takes PIL images through torchvision's transforms in a DataLoader of 2 workers, runs both networks to their
end in float32, and builds the FSP matrices by broadcasting. A turn of either is an epoch of a few batches, since workers
would otherwise fetch ahead while ours is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.fsp_loss import broadcast_loss
from benchmarks.measure import Goal, compare, options
from benchmarks.setting import BATCH, MEAN, STD, Scene, random_images, steps_of
from flowstill.engine.precision import Precision
from flowstill.transfer.procedures import cyclic

GOAL, STEPS = Goal("at least", 8), 6


class Pictures(Dataset[tuple[Tensor, int]]):
    """As torchvision's CIFAR10: arrays, each made a PIL image when it is asked for."""

    def __init__(self, count: int) -> None:
        self.pixels, self.labels = random_images(count)
        crop, flip = transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()
        self.change = transforms.Compose([crop, flip, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.change(Image.fromarray(np.asarray(self.pixels[row]))), self.labels[row]


def by_hand(teacher: nn.Module, student: nn.Module, device: torch.device) -> Callable[[], None]:
    """An epoch of the usual loop."""
    seen: dict[tuple[bool, str], Tensor] = {}
    for network in (teacher, student):
        for name in ("relu", "layer1", "layer2", "layer3"):
            key = (network is teacher, name)
            network.get_submodule(name).register_forward_hook(lambda m, i, out, key=key: seen.__setitem__(key, out))
    parameters = [p for name, p in student.named_parameters() if not name.startswith("fc")]
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)
    loader = DataLoader(
        Pictures(STEPS * BATCH),
        BATCH,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )

    def flows(of_teacher: bool) -> list[list[Tensor]]:
        maps = [seen[of_teacher, name] for name in ("relu", "layer1", "layer2", "layer3")]
        return [[front, back] for front, back in pairwise(maps)]

    def epoch() -> None:
        for images, _ in loader:
            images = images.to(device, non_blocking=True)
            with torch.no_grad():
                teacher(images)
            student(images)
            optimizer.zero_grad()
            torch.autograd.backward(broadcast_loss(flows(False), flows(True)))
            optimizer.step()

    return epoch


def main() -> None:
    asked = options()
    plain = Scene(asked, precision=Precision())
    epoch = by_hand(plain.network("resnet26").eval(), plain.network("resnet8").train(), asked.device)
    (stage,) = cyclic(["fsp"], steps=100_000, lr=1e-3)
    scenes = [Scene(asked), *([plain] if asked.precision != plain.precision else [])]
    for scene in scenes:
        ours = steps_of(scene.step(stage), STEPS)
        compare(
            "FSP stage, a whole step with its data",
            f"ResNet-26 to ResNet-8, {scene}",
            {"broadcast, PIL, float32": epoch, "ours": ours},
            GOAL,
            asked,
            repeats=3,
            share=STEPS,
            beside=scene is plain,
        )


if __name__ == "__main__":
    main()
