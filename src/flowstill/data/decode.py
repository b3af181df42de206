"""Decodes image files to pixels."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from flowstill.data.keyed import Purpose, bits, key_of, uniform
from flowstill.data.splits import Split
from flowstill.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
ORIENTATION = 0x0112  # the EXIF tag
TRIES = 10


@dataclass(frozen=True)
class Form:
    """The common form of a set's images.

    Attributes:
        shape: (C, H, W).
        channels: C, if images are converted to it; None if all must have it already.
        size: H and W, if images are resized to it; None if all must have it already.
        share: of the shorter side, how much of it a test image shows.
    """

    shape: tuple[int, int, int]
    channels: int | None
    size: int | None
    share: float = 1.0


def open_image(split: Split, row: int) -> Image.Image:
    """One image of a split, decoded, upright and, where the split says so, distorted.

    Raises:
        DataError: it cannot be read; the text names the row or file.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    encoded = split.encoded(row)
    try:
        stored = encoded["path"] if encoded["bytes"] is None else io.BytesIO(encoded["bytes"])
        with Image.open(stored) as opened:
            opened.load()
            image: Image.Image = opened
            if opened.getexif().get(ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(opened)
    except Exception as error:  # Pillow raises many kinds of errors
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "unknown format" if unknown else str(error) or type(error).__name__
        raise DataError(f"{split.where(row)} is not a readable image ({reason}). Fix or remove it.") from None
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{split.where(row)} has more than 8 bits per channel. Save it with 8 bits.")
    return split.distortion(image, row) if split.distortion else image


def channels_of(image: Image.Image, split: Split, row: int) -> int:
    """1 for grey, 3 for colour (palettes too).

    Raises:
        DataError: it is neither.
    """
    if image.mode in ("1", "L"):
        return 1
    if image.mode in ("RGB", "P"):
        return 3
    raise DataError(
        f"{split.where(row)} has channels {image.mode}, expected grey or RGB. "
        "Set 'channels' to 1 or 3 to convert all images."
    )


def to_pixels(split: Split, row: int, form: Form, image: Image.Image | None = None, box: Box | None = None) -> Pixels:
    """One image of a split in its ``form``, (C, H, W) uint8.

    Args:
        image: the image, if it is already open.
        box: the part to show instead of the centre.

    Raises:
        DataError: naming the row or file, if it cannot be read or its channels or size do not fit.
    """
    from PIL import Image

    image = image or open_image(split, row)
    channels, height, width = form.shape
    if form.channels is None and (found := channels_of(image, split, row)) != channels:
        raise DataError(
            f"{split.where(row)} has {found} channel(s), the first training image {channels}. "
            "Set 'channels' to 1 or 3 to convert all images."
        )
    if form.size is None and image.size != (width, height):
        raise DataError(
            f"{split.where(row)} is {image.width}x{image.height} pixels, the first training image {width}x{height}. "
            "Set 'size' to resize all images."
        )
    image = image.convert("L" if channels == 1 else "RGB")
    if form.size is not None:
        box = box or central(image.width, image.height, form.share)
        image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    values = np.asarray(image)
    return values[None] if channels == 1 else values.transpose(2, 0, 1)


def central(width: int, height: int, share: float = 1.0) -> Box:
    """The central square whose side is ``share`` of the shorter side.

    >>> central(40, 30)
    (5.0, 0.0, 35.0, 30.0)
    """
    side = min(width, height) * share
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_area(width: int, height: int, seed: int, index: int, epoch: int) -> Box:
    """8 % to 100 % of an image, its sides in a ratio of 3:4 to 4:3, drawn from (seed, epoch, index).

    Area and the ratio's logarithm are uniform. If none of ten draws fits into the image, its central square.
    """
    random = uniform(
        bits(key_of(seed, Purpose.AREA), torch.tensor(epoch), torch.tensor(index), torch.arange(4 * TRIES))
    )
    for share, ratio, across, down in random.view(TRIES, 4).tolist():
        area = width * height * (0.08 + 0.92 * share)
        aspect = math.exp(math.log(4 / 3) * (2 * ratio - 1))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(across * (width - wide + 1)), int(down * (height - high + 1))
            return left, top, left + wide, top + high
    return central(width, height)
