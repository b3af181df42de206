"""Between a run's batches and a network: the network's own view of the images, and what its output means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowstill.errors import NetworkError
from flowstill.nets import Preprocessing, weights_file
from flowstill.nets.published import library_preprocessing, own_preprocessing, preprocessing_in
from flowstill.recipes.recipe import AfterStage, Job, Recipe, Weights
from flowstill.runs import is_run
from flowstill.schema.dataclass import validated

if TYPE_CHECKING:
    from flowstill.data import ImageData

Output = Literal["logits", "probabilities"]


@dataclass(frozen=True)
class Interface:
    """A network's own view of a run's batches. All networks of a step see the same augmented images.

    Attributes:
        own: the network's complete preprocessing.
        data: the batches' complete preprocessing.
        output: ``probabilities`` if the network ends in a softmax; their logarithm serves as logits.
    """

    own: Preprocessing
    data: Preprocessing
    output: Output = "logits"

    @property
    def differs(self) -> bool:
        """Whether the network needs images other than the batch's, or returns something other than logits."""
        same = self.own.size == self.data.size and same_scale(self.own, self.data) and self.own.order == self.data.order
        return not same or self.output != "logits"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network sees."""
        assert self.own.mean is not None
        assert self.own.size is not None
        return (len(self.own.mean), *self.own.size)

    def images(self, images: Tensor, *, testing: bool = False) -> Tensor:
        """The network's view of a batch, (B, C, H, W).

        Args:
            images: (B, C, H, W), normalised as the data's.
            testing: crop to the share of the image that the network was tested with, if that is less than the data's.
        """
        own, data = self.own, self.data
        assert own.size is not None
        assert own.crop is not None
        assert data.crop is not None
        if testing and own.crop < data.crop:
            height, width = (round(side * own.crop / data.crop) for side in images.shape[-2:])
            top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
            images = images[..., top : top + height, left : left + width]
        if tuple(images.shape[-2:]) != own.size:
            if own.interpolation == "nearest":
                images = F.interpolate(images, own.size, mode="nearest-exact")
            else:
                images = F.interpolate(images, own.size, mode=own.interpolation or "bilinear", antialias=True)
        if not same_scale(own, data):
            like = {"dtype": images.dtype, "device": images.device}
            own_mean, own_std, mean, std = (
                torch.tensor(values, **like).view(-1, 1, 1)  # type: ignore[arg-type]  # none is None
                for values in (own.mean, own.std, data.mean, data.std)
            )
            images = images * (std / own_std) + (mean - own_mean) / own_std
        return images.flip(1) if own.order == "bgr" else images

    def logits(self, output: Tensor) -> Tensor:
        """The logits that the network's output (B, classes) stands for."""
        if self.output == "logits":
            return output
        return output.float().clamp_min(torch.finfo(torch.float32).tiny).log()

    def to_facts(self) -> dict[str, Any]:
        """The interface as a run's facts record it."""
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.own).items()}
        return {**values, "output": self.output}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], data: Preprocessing) -> Interface:
        """Read what ``to_facts`` wrote."""
        values = {key: value for key, value in facts.items() if key != "output"}
        return cls(validated(Preprocessing, values).or_else(data), data, facts.get("output", "logits"))


def same_scale(one: Preprocessing, other: Preprocessing) -> bool:
    """Whether both normalise alike, up to rounding."""
    pairs = [*zip(one.mean or (), other.mean or (), strict=True), *zip(one.std or (), other.std or (), strict=True)]
    return all(abs(a - b) <= 1e-4 * max(1.0, abs(b)) for a, b in pairs)


def data_preprocessing(data: ImageData) -> Preprocessing:
    """The preprocessing of a data set's test images, as batches hold them."""
    mean, std = (tuple(255 * share for share in shares) for shares in (data.mean, data.std))
    _, height, width = data.shape
    return Preprocessing(mean, std, (height, width), "bilinear", data.spec.test_crop, "rgb")


def find_interfaces(
    recipe: Recipe,
    data: ImageData,
    networks: Mapping[str, nn.Module],
    recorded: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Interface]:
    """The interface of each job's network.

    Args:
        networks: of the jobs that are given as objects.
        recorded: a run's facts, by the job's name; they take precedence.

    Raises:
        NetworkError: a statement about preprocessing cannot be read or does not fit the images.
    """
    common = data_preprocessing(data)
    found: dict[str, Interface] = {}
    for name in _in_order(recipe):
        if recorded and name in recorded:
            found[name] = Interface.from_facts(recorded[name], common)
            continue
        job = recipe.jobs[name]
        try:
            stated = job.network.preprocessing or Preprocessing()
            if isinstance(job.start, AfterStage):
                start = found[job.start.job].own
            else:
                start = _brought(job, networks.get(name)) or Preprocessing()
                if job.stages and not job.weights:  # it is trained on these images, at their size
                    start = replace(start, size=None, crop=None, interpolation=None)
                if start.mean and len(start.mean) != data.shape[0]:
                    start = replace(start, mean=None, std=None, order=None)
            found[name] = Interface(stated.or_else(start).or_else(common), common)
            _check_channels(found[name], data.shape[0])
        except NetworkError as error:
            raise NetworkError(f"job {name!r}: {error}") from None
    return found


def _in_order(recipe: Recipe) -> Iterable[str]:
    return (name for group in recipe.groups() for name in group)


def _check_channels(interface: Interface, channels: int) -> None:
    given = len(interface.own.mean or ())
    if given != channels:
        raise NetworkError(
            f"network.preprocessing: 'mean' and 'std' have {given} number(s), but the images have {channels} "
            "channel(s). Give one number per channel in each."
        )


def _brought(job: Job, network: nn.Module | None) -> Preprocessing | None:
    """The preprocessing that a network's weights record; None if they record none, or there are no weights."""
    if network is not None:
        return own_preprocessing(network)
    path = job.weights or (job.start.weights if isinstance(job.start, Weights) else None)
    if path:
        file, _ = weights_file(path)
        said = preprocessing_in(file)
        if said is not None:
            return said
        if is_run(file.parent):  # trained by a version that did not record it
            return None
        library = library_preprocessing(job.network.name)
        return None if library is None else Preprocessing(library.mean, library.std)
    if job.network.options.get("pretrained"):
        return library_preprocessing(job.network.name)
    return None
