"""TCIFAR-100 and TCIFAR-10: CIFAR with artifacts "from a gaussian distribution (sigma = 1)" in each image.

After section 4.2.4 of the knowledge representing paper (2019), which says no more than that: a reconstruction.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flowstill.data.keyed import Purpose, bits, key_of, normal
from flowstill.data.spec import DISTORTED, Data

if TYPE_CHECKING:
    from PIL import Image

Values = np.ndarray[Any, np.dtype[np.float64]]
# Of each channel over the training images, in units of 0 to 255; CIFAR-100's are those of the SVD paper's code.
DEVIATIONS = {"cifar10": (62.99, 62.09, 66.70), "cifar100": (68.21, 65.43, 70.46)}


@dataclass(frozen=True)
class Distortion:
    """What is done to each image of a split, always the same: it depends on the split and the image's row alone.

    Attributes:
        split: 0 for training images, 1 for test images.
        noise: the deviation of what is added to each value of red, green and blue, in units of 0 to 255; None to blur
            instead.
    """

    split: int
    noise: tuple[float, float, float] | None = None

    def __call__(self, image: Image.Image, row: int) -> Image.Image:
        """The image with artifacts, RGB, rounded to the nearest of 0 to 255 (a half to the even one)."""
        from PIL import Image

        values = np.asarray(image.convert("RGB")).astype(np.float64)
        values = blurred(values) if self.noise is None else values + self._noise(values.shape, row)
        return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))

    def _noise(self, shape: tuple[int, ...], row: int) -> Values:
        numbers = torch.arange(int(np.prod(shape)))
        random = bits(key_of(0, Purpose.DISTORTION), torch.tensor(self.split), torch.tensor(row), numbers)
        noise: Values = normal(random).numpy().reshape(shape) * np.array(self.noise)
        return noise


def distortion(spec: Data, split: int) -> Distortion | None:
    """What ``spec`` says is done to the images of a split, 0 for training and 1 for test; None for clean sets."""
    if spec.name not in DISTORTED:
        return None
    if spec.distortion == "noise_255_sigma1":
        return Distortion(split, (1.0, 1.0, 1.0))
    if spec.distortion == "noise_norm_sigma1":
        return Distortion(split, DEVIATIONS[DISTORTED[spec.name]])
    if spec.noise_sigma is not None:
        return Distortion(split, (spec.noise_sigma,) * 3)
    return Distortion(split)


def blurred(values: Values) -> Values:
    """An image (H, W, C) convolved with a Gaussian of deviation 1 pixel, along both axes.

    At the edges the weights of what lies inside are scaled to the sum 1: the image's brightness does not fade.
    """
    down, across = blur_matrix(values.shape[0]), blur_matrix(values.shape[1])
    blurry: Values = (down @ values.transpose(2, 0, 1) @ across.T).transpose(1, 2, 0)
    return blurry


@functools.cache
def blur_matrix(length: int, sigma: float = 1.0) -> Values:
    """The weights of each pixel of a line (columns) in each pixel of the blurred line (rows), whose sums are 1.

    >>> blur_matrix(3).round(4).tolist()
    [[0.5741, 0.3482, 0.0777], [0.2741, 0.4519, 0.2741], [0.0777, 0.3482, 0.5741]]
    """
    places = np.arange(length)
    weights: Values = np.exp(-((places[:, None] - places) ** 2) / (2 * sigma**2))
    weights /= weights.sum(1, keepdims=True)
    return weights
