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
    """

    crop: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    shift: Annotated[int, Field(ge=0)] = 0
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    resized_crop: bool = False


@specification
class Data:
    """A data set and how it is fed.

    name: ``digits``, ``cifar10``, ``cifar100``, ``mnist``, ``cub200``, ``imagenet``, a folder of images, a parquet
    file's folder, or a hub name. root: where local copies lie (the command line's ``--data-root``).
    labels: so many labelled training images for the task (stratified, seeded), None for all; transfer uses all images.
    unlabelled: with ``labels``, so many images more in each joint update, from the whole set, for its transfer terms.
    hold_out: so many training images (stratified, seeded) stand in for the test images and are not trained on.
    size: side in pixels to which images are brought, the shorter side first, then the centre; None as they are.
    channels: 1 or 3, None as they are. workers: processes that decode, for sets too large for memory.
    """

    name: str
    root: str | None = None
    batch: Annotated[int, Field(ge=1)] = 256
    labels: Annotated[int, Field(ge=1)] | None = None
    unlabelled: Annotated[int, Field(ge=0)] = 0
    hold_out: Annotated[int, Field(ge=0)] = 0
    augment: Augment = Augment()
    size: Annotated[int, Field(ge=8)] | None = None
    channels: Literal[1, 3] | None = None
    workers: Annotated[int, Field(ge=0)] = 2
