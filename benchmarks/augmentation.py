"""Crop, flip and normalise a batch, against torchvision's transforms on PIL images, one thread each."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from benchmarks.measure import report
from flowstill.data.augment import changed, draw
from flowstill.data.spec import Augment

MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]


def main(batch: int = 256) -> None:
    torch.set_num_threads(1)
    pixels = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = [Image.fromarray(np.moveaxis(image.numpy(), 0, 2)) for image in pixels]
    crop, flip = transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()
    theirs = transforms.Compose([crop, flip, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    index, epoch = torch.arange(batch), torch.zeros(batch, dtype=torch.long)
    mean, std = 255 * torch.tensor(MEAN), 255 * torch.tensor(STD)
    report("crop, flip, normalise, one thread", f"({batch}, 3, 32, 32) uint8", {
        "torchvision on PIL images": lambda: torch.stack([theirs(image) for image in images]),
        "ours": lambda: changed(pixels, draw(Augment(crop=4, flip=True), 0, index, epoch), mean, std),
    }, "ours")  # fmt: skip


if __name__ == "__main__":
    main()
