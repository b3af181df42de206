"""How an image becomes a network's input: it belongs to the network, and goes where the network goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from flowstill.errors import NetworkError
from flowstill.schema import specification

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Interpolation = Literal["bilinear", "bicubic", "nearest"]
Size = Annotated[
    tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]],
    BeforeValidator(lambda v: (v, v) if type(v) is int else v),
    Field(description="a number of pixels, or [height, width]"),
]
_RESAMPLING: dict[Interpolation, int] = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # Pillow's numbers


@specification
class Preprocessing:
    """How an image becomes a network's input; what is None is as the run's data.

    In order: the central square of ``crop`` times the shorter side, resized to ``size``; channels in ``order``;
    (value - mean) / std on values from 0 to 255.

    Attributes:
        mean: of each channel in the order red, green, blue, or of grey, from 0 to 255. (ImageNet's: 123.675, 116.28,
            103.53.)
        std: standard deviation, likewise.
        size: height and width of the input in pixels; one number for both.
        interpolation: how images are resized.
        crop: share of the shorter side that is shown when testing, above 0 to 1.
        order: of the channels that the network expects.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    size: Size | None = None
    interpolation: Interpolation | None = None
    crop: Annotated[float, Field(gt=0, le=1)] | None = None
    order: Literal["rgb", "bgr"] | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            mean: Sequence[float] | None = None,
            std: Sequence[float] | None = None,
            size: int | Sequence[int] | None = None,
            interpolation: Interpolation | None = None,
            crop: float | None = None,
            order: Literal["rgb", "bgr"] | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        if len(self.mean or ()) != len(self.std or ()) or len(self.mean or (0,)) not in (1, 3):
            raise ValueError("'mean' and 'std' go together: 1 or 3 numbers in each, in units of 0 to 255")
        if self.std is not None and self.mean is not None and max(map(abs, (*self.mean, *self.std))) <= 1:
            stated = [round(255 * value, 2) for value in self.mean], [round(255 * value, 2) for value in self.std]
            if any(self.mean):  # a mean of 0 with a deviation of 1 leaves values from 0 to 255 as they are
                raise ValueError(
                    "'mean' and 'std' are shares of 1; give them in units of 0 to 255: "
                    f"'mean: {stated[0]}', 'std: {stated[1]}'"
                )
        if self.order == "bgr" and len(self.mean or (0, 0, 0)) != 3:
            raise ValueError("'order: bgr' needs three channels")

    def or_else(self, other: Preprocessing) -> Preprocessing:
        """This one, with ``other``'s values for what is None."""
        return replace(self, **{key: value for key, value in asdict(other).items() if getattr(self, key) is None})

    def __call__(self, images: Any) -> Tensor:
        """Pillow images, files or uint8 arrays as the network's input.

        Args:
            images: one image or a list: a path, a Pillow image, or an array (H, W) or (H, W, 3) of values from 0 to 255.

        Returns:
            (B, C, H, W) float32; B is 1 for one image.

        Raises:
            NetworkError: mean, deviation or size is not known.
        """
        import torch

        if self.mean is None or self.std is None or self.size is None:
            raise NetworkError("Expected a preprocessing with 'mean', 'std' and 'size'. Received: one without.")
        listed = images if isinstance(images, (list, tuple)) else [images]
        pixels = torch.stack([self._pixels(image) for image in listed]).float()
        # As in training: a subtraction, then a product.
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        normalised = pixels.sub_(mean).mul_(1 / std)
        return normalised.flip(1) if self.order == "bgr" else normalised

    def _pixels(self, given: Any) -> Tensor:
        """One image, cropped and resized, (C, H, W) uint8, red first."""
        import numpy as np
        import torch
        from PIL import Image, ImageOps

        assert self.mean is not None
        assert self.size is not None
        if isinstance(given, (str, Path)):
            given = ImageOps.exif_transpose(Image.open(given))
        image: Image.Image = given if isinstance(given, Image.Image) else Image.fromarray(np.asarray(given))
        image = image.convert("L" if len(self.mean) == 1 else "RGB")
        height, width = self.size
        crop = self.crop or 1.0
        if crop < 1 or image.size != (width, height):
            side = min(image.width / width, image.height / height) * crop
            left, top = (image.width - side * width) / 2, (image.height - side * height) / 2
            box = (left, top, left + side * width, top + side * height)
            resampling = Image.Resampling(_RESAMPLING[self.interpolation or "bilinear"])
            image = image.resize((width, height), resampling, box=box)
        values = torch.from_numpy(np.array(image))
        return values[None] if len(self.mean) == 1 else values.permute(2, 0, 1)

    def to_hugging_face(self) -> dict[str, Any]:
        """The content of ``preprocessor_config.json``, whose shares are of 1.

        Raises:
            NetworkError: mean, deviation or size is not known.
        """
        if self.mean is None or self.std is None or self.size is None:
            raise NetworkError("Expected a preprocessing with 'mean', 'std' and 'size'. Received: one without.")
        height, width = self.size
        crop = self.crop or 1.0
        swapped = slice(None, None, -1 if self.order == "bgr" else None)
        return {
            "image_processor_type": "BitImageProcessor",
            "do_convert_rgb": len(self.mean) == 3,
            "do_resize": True,
            "size": {"shortest_edge": math.floor(min(height, width) / crop)},
            "resample": _RESAMPLING[self.interpolation or "bilinear"],
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [value / 255 for value in self.mean[swapped]],
            "image_std": [value / 255 for value in self.std[swapped]],
            **({"do_flip_channel_order": True} if self.order == "bgr" else {}),
        }

    @classmethod
    def from_hugging_face(cls, config: Mapping[str, Any]) -> Preprocessing:
        """What a ``preprocessor_config.json`` says.

        Raises:
            NetworkError: a value is not what the format has there.
        """
        try:
            return cls._from_config(config)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise NetworkError(f"preprocessor_config.json: {error}") from None

    @classmethod
    def _from_config(cls, config: Mapping[str, Any]) -> Preprocessing:
        scale = 1 / config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
        normalised = config.get("do_normalize", True) and "image_mean" in config
        flipped = bool(config.get("do_flip_channel_order"))
        mean, std = (config["image_mean"], config["image_std"]) if normalised else ([0.0] * 3, [1.0] * 3)
        order = slice(None, None, -1 if flipped else None)
        shorter, inner = _sides(config.get("size")), _sides(config.get("crop_size"))
        cropped = bool(config.get("do_center_crop")) and inner is not None
        size = inner if cropped else shorter
        crop = config.get("crop_pct")
        if crop is None and cropped and inner and shorter and config.get("do_resize", True):
            crop = min(inner) / min(shorter)
        return cls(
            mean=tuple(round(scale * value, 6) for value in mean)[order],
            std=tuple(round(scale * value, 6) for value in std)[order],
            size=size,
            interpolation={v: k for k, v in _RESAMPLING.items()}.get(config.get("resample", 2), "bilinear"),
            crop=min(1.0, crop) if crop else None,
            order="bgr" if flipped else "rgb",
        )


def _sides(value: Any) -> tuple[int, int] | None:
    """Height and width in one of Hugging Face's forms."""
    if isinstance(value, Mapping):
        if "shortest_edge" in value:
            return value["shortest_edge"], value["shortest_edge"]
        return (value["height"], value["width"]) if "height" in value else None
    if isinstance(value, int):
        return value, value
    return (value[0], value[1]) if isinstance(value, (list, tuple)) and len(value) == 2 else None
