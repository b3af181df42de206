"""Which images, in what batches, with what augmentation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowstill.specification import specification


@specification
class Augment:
    """Random changes of each training image, drawn from (seed, epoch, index of the image).

    Applied in this order: flip, rotation, crop, shift. What comes in from outside is 0 after normalisation (the
    training set's mean colour), as in the SVD paper's pipeline; the FSP paper does not say.

    crop: padding in pixels before a random crop of the original size. flip: mirror half of the images, left to right.
    shift: translation by up to so many pixels each way. rotate: by up to so many degrees, nearest neighbour.
    resized_crop: for large images, a random area of 8 % to 100 %, resized to the data's size, before all others;
    test images are then the central 7/8 of their shorter side instead of all of it.
    views: how many ways each image has of being shown, None as many as there are. They are drawn once, by chance, from
    (the data's seed, index, number of the view), are the same in all stages and jobs of a run, and each epoch shows one
    of them. A teacher's knowledge of a few views can be stored; but it is less augmentation than the papers train with,
    which draw anew in each epoch.
    """

    crop: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    shift: Annotated[int, Field(ge=0)] = 0
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    resized_crop: bool = False
    views: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        if self.views and not (self.crop or self.flip or self.shift or self.rotate or self.resized_crop):
            raise ValueError(f"'views: {self.views}' of an image need something to draw: 'crop', 'flip', 'shift', "
                             "'rotate' or 'resized_crop'")  # fmt: skip

    @property
    def view_count(self) -> int | None:
        """How many views there are of an image; None where there is no end of them.

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

    name: ``digits``, ``cifar10``, ``cifar100``, ``mnist``, ``cub200``, ``imagenet``, a folder of images, a parquet
    file's folder, or a hub name. root: where local copies lie (the command line's ``--data-root``).
    accumulate: in so many parts, one after another, each batch goes through the networks, and the gradients of the parts are
    summed: for batches that do not fit into memory. BatchNorm, where there is any, sees each part by itself.
    labels: so many labelled training images for the task (stratified, seeded), None for all; transfer uses all images.
    unlabelled: with ``labels``, so many images more in each joint update, from the whole set, for its transfer terms.
    hold_out: so many training images (stratified, seeded) stand in for the test images and are not trained on.
    size: side in pixels to which images are brought, the shorter side first, then the centre; None as they are.
    channels: 1 or 3, None as they are. workers: processes that decode, for sets too large for memory.
    """

    name: str
    root: str | None = None
    batch: Annotated[int, Field(ge=1)] = 256
    accumulate: Annotated[int, Field(ge=1)] = 1
    labels: Annotated[int, Field(ge=1)] | None = None
    unlabelled: Annotated[int, Field(ge=0)] = 0
    hold_out: Annotated[int, Field(ge=0)] = 0
    augment: Augment = Augment()
    size: Annotated[int, Field(ge=8)] | None = None
    channels: Literal[1, 3] | None = None
    workers: Annotated[int, Field(ge=0)] = 2

    def __post_init__(self) -> None:
        if self.accumulate > self.batch:
            raise ValueError(f"accumulate is {self.accumulate}, but a batch has only {self.batch} images to divide")
