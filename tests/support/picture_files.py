"""Writes data sets of small random pictures, and reads back what was opened."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

TWO_CLASSES = [0, 1, 0, 1, 1, 0]


def picture(number: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_parquet(
    file: Path, labels: list[int], first: int = 0, columns: tuple[str, str] = ("img", "label"), **size
) -> None:
    images = [{"bytes": encoded(picture(first + i, **size)), "path": None} for i in range(len(labels))]
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({columns[0]: images, columns[1]: pa.array(labels, pa.int64())}), file, row_group_size=2)


def write_folder(folder: Path, labels: list[int], names: list[str], first: int = 0) -> None:
    for number, label in enumerate(labels):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        picture(first + number).save(folder / names[label] / f"{number:03}.png")


def expected(numbers: range, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> torch.Tensor:
    values = np.stack([np.asarray(picture(n, size, mode)) for n in numbers])
    return torch.from_numpy(values[:, None] if mode == "L" else values.transpose(0, 3, 1, 2))


def raw(data, images: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    return (255 * (images * std + mean)).round().to(torch.uint8)


def seen_in_testing(data) -> tuple[torch.Tensor, list[int]]:
    batches = list(data.test_batches(batch=4))
    return raw(data, torch.cat([images for images, _ in batches])), torch.cat(
        [labels for _, labels in batches]
    ).tolist()


def seen_in_training(data, count: int) -> tuple[torch.Tensor, list[int]]:
    """The training images in the order of their rows."""
    (batch,) = data.train_batches("all", batch=count, steps=1)
    order = batch.index.argsort()
    return raw(data, batch.images[order]), batch.labels[order].tolist()
