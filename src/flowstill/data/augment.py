"""Random changes of whole batches on their device, each drawn from (seed, epoch or view, index of the image) alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowstill.data.keyed import Purpose, below, bits, key_of, uniform
from flowstill.data.order import Rows
from flowstill.data.spec import Augment

FIXED = 65536  # coordinates of rotation are 16.16 fixed-point numbers: the same on every device, and as in Pillow


@dataclass(frozen=True)
class Drawn:
    """The changes of each of B images, on the CPU.

    Attributes:
        flip: (B,) bool, whether to mirror left to right.
        angle: (B,) float64, degrees counter-clockwise about the centre.
        move: (B, 2, 2) int64, pixels down and to the right, first by the crop, then by the shift.
    """

    flip: Tensor
    angle: Tensor
    move: Tensor


def draw(augment: Augment, seed: int, index: Tensor, turn: Tensor) -> Drawn | None:
    """The changes of the images of rows ``index`` in their epoch or view ``turn``, both (B,) int64 on the CPU.

    Each is uniform: a fair coin, whole pixels in [-n, n], angles in [-n, n). None without any.
    """
    if not (augment.flip or augment.crop or augment.shift or augment.rotate):
        return None
    random = bits(key_of(seed, Purpose.AUGMENT), turn, index, torch.arange(6)[:, None])
    reach = [augment.crop, augment.crop, augment.shift, augment.shift]
    moves = [below(numbers, 2 * most + 1) - most for numbers, most in zip(random[:4], reach, strict=True)]
    return Drawn(
        flip=(random[4] < 0) & augment.flip,
        angle=(2 * uniform(random[5]) - 1) * augment.rotate,
        move=torch.stack(moves, 1).view(-1, 2, 2),
    )


def view_numbers(augment: Augment, rows: Rows, drawn: Drawn | None) -> Tensor | None:
    """The number of each image's view, (B,) int64 below ``augment.view_count``; None if unbounded.

    Equal numbers are equal changes. Where views are not fixed the number's digits are flip, crop and shift.
    """
    if augment.view_count is None or rows.view is not None:
        return rows.view
    number = torch.zeros_like(rows.index)
    if drawn is not None:
        number += drawn.flip
        for axes, most in ((drawn.move[:, 0], augment.crop), (drawn.move[:, 1], augment.shift)):
            for move in axes.unbind(1):
                number = number * (2 * most + 1) + move + most
    return number


def changed(pixels: Tensor, drawn: Drawn | None, mean: Tensor, std: Tensor) -> Tensor:
    """Images (B, C, H, W) uint8, changed and normalised: (value - mean) / std, float32.

    Args:
        mean: (C,) float32 on the device of ``pixels``, in units of its values. Pixels from outside an image are 0 after
            normalisation.
        std: likewise.
    """
    scale, masks = (1 / std).view(-1, 1, 1), []
    if drawn is not None:
        source, inside = _sources(drawn, pixels)
        flat = source.flatten(1)[:, None].expand(-1, pixels.shape[1], -1)
        pixels = pixels.flatten(2).gather(2, flat).view(pixels.shape)
        first, *masks = [mask[:, None].float() for mask in inside]
        scale = scale * first  # one pass over the images less
    images = pixels.float().sub_(mean.view(-1, 1, 1)).mul_(scale)
    for mask in masks:
        images.mul_(mask)
    return images


def _sources(drawn: Drawn, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Where each pixel comes from, (B, H, W) int64 as y * W + x, and whether that is in the image: where all these bool
    tensors, (B, H, 1), (B, 1, W) and after a rotation (B, H, W), are true.

    Read from the result backwards: shift, crop, rotation, flip.
    """
    height, width = pixels.shape[-2:]
    move = drawn.move.to(pixels.device, non_blocking=True)
    y, y_inside = _moved(height, move[:, :, 0])
    x, x_inside = _moved(width, move[:, :, 1])
    y, x = y[:, :, None], x[:, None, :]
    inside = [y_inside[:, :, None], x_inside[:, None, :]]
    if drawn.angle.any():
        y, x = _rotated(y, x, drawn.angle, height, width)
        inside.append((y >= 0) & (y < height) & (x >= 0) & (x < width))
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    flip = drawn.flip.to(pixels.device, non_blocking=True)[:, None, None]
    return y * width + torch.where(flip, width - 1 - x, x), inside


def _moved(length: int, move: Tensor) -> tuple[Tensor, Tensor]:
    """One axis under crop and shift, ``move`` (B, 2): the places read, (B, length), and whether both find an image."""
    cropped = torch.arange(length, device=move.device) - move[:, 1:]
    place = cropped - move[:, :1]
    inside = (cropped >= 0) & (cropped < length) & (place >= 0) & (place < length)
    return place, inside


def _rotated(y: Tensor, x: Tensor, angle: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Places after rotation by ``angle``, (B, H, W) each, nearest neighbour: what Pillow's ``rotate`` reads."""
    radians = torch.deg2rad(angle)
    cos, sin = radians.cos(), radians.sin()
    middle_y, middle_x = height / 2, width / 2
    start_x = middle_x - cos * middle_x + sin * middle_y + (cos - sin) / 2
    start_y = middle_y - sin * middle_x - cos * middle_y + (sin + cos) / 2
    matrix = torch.stack([cos, -sin, start_x, sin, cos, start_y])
    fixed = torch.floor(matrix * FIXED + 0.5).long().to(x.device, non_blocking=True)[:, :, None, None]
    read_x = (fixed[0] * x + fixed[1] * y + fixed[2]) >> 16
    read_y = (fixed[3] * x + fixed[4] * y + fixed[5]) >> 16
    return read_y, read_x
