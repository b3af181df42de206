"""Crop, flip and normalise: an epoch of batches, against torchvision's transforms on PIL images, one core each."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from benchmarks.fsp_step import Pictures
from benchmarks.measure import Goal, compare, options
from benchmarks.setting import BATCH, CROP, MEAN, STD, held
from flowstill.data.augment import changed

GOAL, STEPS = Goal("at least", 10), 4


def main() -> None:
    asked = options()
    torch.set_num_threads(1)
    pictures, data = Pictures(STEPS * BATCH), held(STEPS * BATCH, CROP)
    plain = torch.from_numpy(pictures.pixels).permute(0, 3, 1, 2)[:8]
    normalise = pictures.change.transforms[-1]
    ours = changed(plain, None, 255 * torch.tensor(MEAN), 255 * torch.tensor(STD))
    torch.testing.assert_close(ours, normalise(plain / 255), rtol=1e-4, atol=1e-5)  # what is changed is drawn apart
    loader = DataLoader(pictures, BATCH, shuffle=True)
    batches = iter(data.train_batches("all", batch=BATCH, steps=100_000, device=asked.device))

    def theirs() -> None:
        for images, labels in loader:
            images.to(asked.device), labels.to(asked.device)

    def own() -> None:
        for _ in range(STEPS):
            next(batches)

    compare(
        "crop, flip, normalise a batch, one thread",
        f"({BATCH}, 3, 32, 32) uint8",
        {"torchvision, PIL": theirs, "ours": own},
        GOAL,
        asked,
        share=STEPS,
    )


if __name__ == "__main__":
    main()
