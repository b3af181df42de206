"""Opens a data set: finds it, checks it, decodes it if it fits in memory."""

from __future__ import annotations

import math
from dataclasses import replace

from flowstill.data.classes import class_names
from flowstill.data.dataset import ImageData, Images
from flowstill.data.decode import Form, channels_of, open_image
from flowstill.data.distortion import distortion
from flowstill.data.locate import find_source
from flowstill.data.memory import Decoded
from flowstill.data.named import NAMED, Facts, data_facts
from flowstill.data.reader import READERS
from flowstill.data.spec import Data
from flowstill.data.splits import Split
from flowstill.data.streaming import Streamed
from flowstill.data.synthetic import is_synthetic, synthetic_data
from flowstill.errors import DataError

IN_MEMORY = 4 * 2**30  # bytes of decoded images up to which a set is held in memory


def open_data(spec: Data, *, seed: int = 0) -> ImageData:
    """The images that ``spec`` names, ready for training.

    Args:
        seed: of the held-out and the labelled images.

    Raises:
        DataError: they are missing or unfit: the text names the file or row, and what to do.

    >>> data = open_data(Data("digits", labels=200))
    >>> data.shape, len(data.classes), data.train_size, data.labelled_size, data.test_size
    ((1, 8, 8), 10, 1297, 200, 500)
    """
    if is_synthetic(spec.name):
        return synthetic_data(spec, seed)
    source = find_source(spec)
    train, test = READERS.find(source.reader).read(source)
    train = replace(train, distortion=distortion(spec, 0))
    test = replace(test, distortion=distortion(spec, 1)) if test is not None else None
    named = NAMED.get(spec.name)
    classes = class_names(train, test, named.facts.classes if named else None, named.classes if named else ())
    form = _form(spec, train)
    splits = {"train": train, "test": test} if test is not None else {"train": train}
    decoded = sum(map(len, splits.values())) * math.prod(form.shape)
    images: Images
    if spec.augment.resized_crop or decoded > IN_MEMORY:
        images = Streamed(splits, form, workers=spec.workers, random_areas=spec.augment.resized_crop)
    else:
        images = Decoded(splits, form)
    labels = {name: split.labels for name, split in splits.items()}
    return ImageData(spec, images, form.shape, classes, labels, seed)


def find_facts(spec: Data) -> Facts:
    """The images' shape and the number of classes: by the name, or else by opening the set.

    Raises:
        DataError: bad input.
    """
    if facts := data_facts(spec):
        return facts
    data = open_data(spec)
    return Facts(data.shape, len(data.classes))


def _form(spec: Data, train: Split) -> Form:
    """The form of all images: from the specification, from the name, or else from the first training image."""
    named, facts = NAMED.get(spec.name), data_facts(spec)
    channels: int | None = spec.channels
    size = spec.size
    if facts and named and not named.fixed:
        channels, size = channels or facts.shape[0], size or facts.shape[1]
    if spec.augment.resized_crop and size is None:
        raise DataError(f"'resized_crop' resizes areas of {spec.name!r} to one size: set 'size', in pixels.")
    if spec.test_crop < 1 and size is None:
        raise DataError(f"'test_crop' resizes the middle of {spec.name!r}'s test images: set 'size', in pixels.")
    first = open_image(train, 0)
    height, width = (size, size) if size else (first.height, first.width)
    shape = (channels or channels_of(first, train, 0), height, width)
    if facts and shape != facts.shape:
        raise DataError(
            f"{train.where(0)} has (channels, height, width) {shape}; {spec.name!r} has {facts.shape}. If it is "
            "another set, give its folder as 'name'; to convert it, set 'size' and 'channels'."
        )
    if spec.mean and len(spec.mean) != shape[0]:
        raise DataError(
            f"'mean' and 'std' have {len(spec.mean)} number(s), but images of {spec.name!r} have {shape[0]} channel(s). "
            "Give one number per channel in each."
        )
    return Form(shape, channels, size, spec.test_crop)
