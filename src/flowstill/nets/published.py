"""What is known of the images that a network was trained on: from its file, a file beside it, or its library."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowstill.errors import FlowstillError, NetworkError
from flowstill.nets.preprocessing import Interpolation, Preprocessing
from flowstill.schema.dataclass import validated

if TYPE_CHECKING:
    from torch import nn

METADATA = "preprocessing"  # its key in a safetensors file's metadata
CONFIG = "preprocessor_config.json"
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_NOTED = "preprocessing"  # an attribute of networks
_log = logging.getLogger("flowstill")


def metadata_in(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for other files, or if there is none."""
    from safetensors import SafetensorError, safe_open

    path = Path(path).expanduser()
    if not path.is_file() or path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):  # reported when the weights are read
        return {}


def preprocessing_in(path: str | Path) -> Preprocessing | None:
    """What a weights file says of its preprocessing: its own metadata, or ``preprocessor_config.json`` beside it.

    Raises:
        NetworkError: there is such a statement, but it cannot be read.
    """
    path = Path(path).expanduser()
    text = metadata_in(path).get(METADATA)
    if text is not None:
        return _read(text, str(path), lambda value: validated(Preprocessing, value))
    beside = (path if path.is_dir() else path.parent) / CONFIG
    if beside.is_file() and not (beside.parent / "recipe.yaml").exists():  # in a run folder it is the student's
        return _read(beside.read_text(encoding="utf-8"), str(beside), Preprocessing.from_hugging_face)
    return None


def _read(text: str, source: str, build: Any) -> Preprocessing:
    try:
        found: Preprocessing = build(json.loads(text))
    except (ValueError, FlowstillError) as error:
        raise NetworkError(f"{source}: its preprocessing cannot be read: {error}") from None
    return found


def library_preprocessing(name: str) -> Preprocessing | None:
    """The preprocessing of ``timm:NAME``'s or ``torchvision:NAME``'s pretrained weights; None if there are none."""
    prefix, _, rest = name.partition(":")
    if prefix == "timm":
        import timm

        config = timm.get_pretrained_cfg(rest, allow_unregistered=True)
        return None if config is None else from_timm(config.to_dict())
    if prefix == "torchvision":
        from torchvision import models

        try:
            transforms = models.get_model_weights(rest).DEFAULT.transforms()
        except (ValueError, AttributeError):
            return None
        (side,), (resized,) = transforms.crop_size, transforms.resize_size
        return _of_shares(transforms.mean, transforms.std, (side, side), transforms.interpolation.value, side / resized)
    return None


def from_timm(config: dict[str, Any]) -> Preprocessing:
    """What timm's ``pretrained_cfg`` says."""
    size = config.get("input_size")
    return _of_shares(
        config["mean"], config["std"], tuple(size[1:]) if size else None, config["interpolation"], config["crop_pct"]
    )


def own_preprocessing(network: nn.Module) -> Preprocessing | None:
    """What a network that was given as an object says of itself.

    All of it if it comes from a run or from a file that says so; only the scale for networks of timm and torchvision,
    which may have been trained on images of another size.
    """
    noted, config = (getattr(network, name, None) for name in (_NOTED, "pretrained_cfg"))
    if isinstance(noted, Preprocessing):
        return noted
    if isinstance(config, dict) and "mean" in config:
        found = from_timm(config)
        return Preprocessing(mean=found.mean, std=found.std)
    if type(network).__module__.startswith("torchvision.models"):
        return Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return None


def note_preprocessing(network: nn.Module, preprocessing: Preprocessing | None) -> None:
    """Let a network carry its preprocessing, unless it has an attribute of that name already."""
    if preprocessing is not None and isinstance(getattr(network, _NOTED, preprocessing), Preprocessing):
        with contextlib.suppress(Exception):  # a TorchScript module takes no attributes
            setattr(network, _NOTED, preprocessing)


def _of_shares(mean: Any, std: Any, size: tuple[int, int] | None, interpolation: str, crop: float) -> Preprocessing:
    names: tuple[Interpolation, ...] = ("bilinear", "bicubic", "nearest")
    return Preprocessing(
        mean=tuple(round(255 * value, 6) for value in mean),
        std=tuple(round(255 * value, 6) for value in std),
        size=size,
        interpolation=next((name for name in names if name == interpolation), "bicubic"),
        crop=min(1.0, crop),
    )
