"""The data section of a recipe: which images, in what batches, with what augmentation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from flowstill.data.given import refuse_images
from flowstill.schema import specification
from flowstill.schema.text import Text, path_as_text

Artifact = Literal["blur_sigma1", "noise_255_sigma1", "noise_norm_sigma1", "noise_calibrated"]
ClassName = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]
DISTORTED = {"tcifar10": "cifar10", "tcifar100": "cifar100"}  # sets made from the files of others


@specification
class Augment:
    """Random changes of each training image, drawn from (seed, epoch, index of the image).

    Applied in this order: flip, rotation, crop, shift. Pixels from outside the image are 0 after normalisation (the
    training set's mean colour), as in the SVD paper's pipeline; the FSP paper does not say.

    Attributes:
        crop: padding in pixels on each side before a random crop of the original size.
        flip: mirror half of the images, left to right.
        shift: largest translation in each direction, in pixels.
        rotate: largest rotation each way, in degrees, nearest neighbour; 0 to 180.
        resized_crop: for photographs, a random area of 8 % to 100 %, resized to the data's ``size`` before everything
            else.
        views: number of fixed views of each image; None to draw a new one in every epoch. Fixed views are drawn once
            from (the data's seed, index, number of the view), are the same in all stages and jobs of a run, and each
            epoch shows one of them. A teacher's knowledge of a few views can be stored, but it is less augmentation
            than the papers train with.
    """

    crop: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    shift: Annotated[int, Field(ge=0)] = 0
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    resized_crop: bool = False
    views: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        if self.views and not (self.crop or self.flip or self.shift or self.rotate or self.resized_crop):
            raise ValueError(
                f"'views: {self.views}' needs an augmentation to draw from: set 'crop', 'flip', 'shift', "
                "'rotate' or 'resized_crop'"
            )

    @property
    def view_count(self) -> int | None:
        """How many views an image has; None if unbounded.

        >>> Augment().view_count, Augment(crop=4).view_count, Augment(crop=4, flip=True).view_count
        (1, 81, 162)
        >>> Augment(rotate=15).view_count, Augment(rotate=15, views=8).view_count
        (None, 8)
        """
        if self.views:
            return self.views
        if self.rotate or self.resized_crop:
            return None
        return (1 + self.flip) * (2 * self.crop + 1) ** 2 * (2 * self.shift + 1) ** 2


@specification
class Data:
    """A data set and how it is fed.

    Attributes:
        name: ``digits``, ``cifar10``, ``cifar100``, ``mnist``, ``cub200``, ``imagenet``, ``tcifar10``, ``tcifar100``, a
            folder, or a data set of the Hugging Face hub (``owner/name``).
        root: folder of local copies (``--data-root``): parquet files, folders of classes, a set's own archive as it
            unpacks, or any layout that has a reader.
        batch: images in each batch.
        accumulate: number of micro-batches that each batch is split into, for batches that do not fit into memory;
            their gradients are summed. BatchNorm sees each micro-batch by itself.
        classes: names of the classes to keep, in the order of the network's outputs; images of other classes are
            dropped from training and test. None for all.
        labels: number of labelled training images for the task (stratified, seeded); None for all. Transfer always uses
            all images.
        unlabelled: with ``labels``, number of further images from the whole set in each joint update, for its transfer
            terms.
        hold_out: number of training images (stratified, seeded) to test on instead of the test images. They are not
            trained on.
        augment: random changes of the training images.
        size: side in pixels to resize images to, the shorter side first, then the central square; None to keep theirs.
        test_crop: share of the shorter side that test images show, above 0 to 1, resized to ``size``. 0.875 is usual beside
            ``augment.resized_crop``.
        channels: 1 or 3, to convert images to; None to keep theirs.
        workers: number of processes that decode images, for sets too large for memory.
        mean: means of red, green and blue (or of grey) to normalise with, from 0 to 255; None to measure them on the
            training images. The SVD paper's code has [129.38, 124.11, 112.48].
        std: standard deviations, likewise, from 1 to 255. The SVD paper's code has [68.21, 65.43, 70.46].
        distortion: for ``tcifar10`` and ``tcifar100``, CIFAR with artifacts in all training and test images, a function
            of the split and the row. The paper (Knowledge Representing, 2019) says only "from a gaussian distribution
            (sigma = 1)". ``blur_sigma1`` (the default) blurs by a Gaussian of 1 pixel; ``noise_255_sigma1`` adds noise
            of standard deviation 1 on 0 to 255; ``noise_norm_sigma1``, of 1 after normalisation; ``noise_calibrated``,
            of ``noise_sigma``. Blur is the default because noise of 1 in 255 is invisible, noise of 1 after
            normalisation is as strong as the image, and the paper's teacher loses 2.8 %: a judgement, not measured.
        noise_sigma: standard deviation of ``noise_calibrated``, on 0 to 255.
        reader: name of the reader for a folder; None to recognise the layout. See ``flowstill.register_reader``.
    """

    name: Annotated[str, BeforeValidator(lambda value: path_as_text(refuse_images(value)))]
    root: Text | None = None
    batch: Annotated[int, Field(ge=1)] = 256
    accumulate: Annotated[int, Field(ge=1)] = 1
    classes: tuple[ClassName, ...] | None = None
    labels: Annotated[int, Field(ge=1)] | None = None
    unlabelled: Annotated[int, Field(ge=0)] = 0
    hold_out: Annotated[int, Field(ge=0)] = 0
    augment: Augment = Augment()
    size: Annotated[int, Field(ge=8)] | None = None
    test_crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    channels: Literal[1, 3] | None = None
    workers: Annotated[int, Field(ge=0)] = 2
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    distortion: Artifact | None = None
    noise_sigma: Annotated[float, Field(gt=0)] | None = None
    reader: str | None = None

    def __post_init__(self) -> None:
        if self.accumulate > self.batch:
            raise ValueError(f"accumulate is {self.accumulate}, but a batch has only {self.batch} images to divide")
        if self.classes is not None and (len(self.classes) < 2 or len(set(self.classes)) < len(self.classes)):
            raise ValueError(f"'classes' is {list(self.classes)}; give at least two classes, each once")
        if len(self.mean or ()) != len(self.std or ()):
            raise ValueError("'mean' and 'std' go together: give as many numbers in both, or neither to measure them")
        for name, values, least in (("mean", self.mean, 0), ("std", self.std, 1)):
            if values is not None and (len(values) not in (1, 3) or not all(least <= x <= 255 for x in values)):
                raise ValueError(
                    f"{name!r} is {list(values)}; it needs 1 or 3 numbers from {least} to 255, in units of "
                    "0 to 255 (multiply shares of 1 by 255)"
                )
        base = self.name.rpartition(":")[2]  # of synthetic images, the set whose shape they have
        if (self.distortion or self.noise_sigma) and base not in DISTORTED:
            raise ValueError(f"'distortion' and 'noise_sigma' are for {' and '.join(DISTORTED)}, not {self.name!r}")
        if (self.distortion == "noise_calibrated") != (self.noise_sigma is not None):
            raise ValueError("'distortion: noise_calibrated' and 'noise_sigma' go together: give both or neither")
