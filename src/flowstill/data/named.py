"""The data sets known by name, and what their names tell without opening them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flowstill.data.spec import DISTORTED, Augment, Data
from flowstill.errors import DataError, did_you_mean

NONE = Augment()
SYNTHETIC = "synthetic:"  # prefix of a name: noise in the shape of that set


@dataclass(frozen=True)
class Facts:
    """What a network must know of a data set: the images' (C, H, W) and the number of classes."""

    shape: tuple[int, int, int]
    classes: int


@dataclass(frozen=True)
class Named:
    """A data set known by name.

    Attributes:
        about: one line.
        facts: image shape and number of classes.
        hub: name on the Hugging Face hub.
        reader: name of the reader for a set that is built in; None where its files are recognised.
        tests: names of the splits that serve as the test set, the likeliest first.
        fixed: whether all images have the size in ``facts``. If not, they are photographs and are resized to it.
        classes: names of the classes, for copies of the set that come without.
        augment: the usual augmentation.
        test_crop: the usual share of the shorter side that test images show.
    """

    about: str
    facts: Facts
    hub: str | None = None
    reader: str | None = None
    tests: tuple[str, ...] = ("test",)
    fixed: bool = True
    classes: tuple[str, ...] = ()
    augment: Augment = NONE
    test_crop: float = 1.0


NAMED = {
    "digits": Named(
        "scikit-learn's scans of handwritten digits, 1 297 + 500, built in",
        Facts((1, 8, 8), 10),
        reader="digits",
        augment=Augment(shift=1),
    ),
    "mnist": Named(
        "handwritten digits, 60 000 + 10 000", Facts((1, 28, 28), 10), "ylecun/mnist", augment=Augment(shift=2)
    ),
    "cifar10": Named(
        "small photographs, 50 000 + 10 000",
        Facts((3, 32, 32), 10),
        "uoft-cs/cifar10",
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        augment=Augment(crop=4),
    ),
    "cifar100": Named(
        "small photographs, 50 000 + 10 000, fine labels",
        Facts((3, 32, 32), 100),
        "uoft-cs/cifar100",
        augment=Augment(crop=4, flip=True),
    ),
    "cub200": Named(
        "birds of 200 species, 5 994 + 5 794 photographs",
        Facts((3, 224, 224), 200),
        "bentrevett/caltech-ucsd-birds-200-2011",
        fixed=False,
        augment=Augment(resized_crop=True, flip=True),
        test_crop=0.875,
    ),
    "imagenet": Named(
        "ILSVRC 2012, 1.28 million photographs, tested on the 50 000 for validation",
        Facts((3, 224, 224), 1000),
        "ILSVRC/imagenet-1k",
        tests=("validation", "val"),
        fixed=False,
        augment=Augment(resized_crop=True, flip=True),
        test_crop=0.875,
    ),
}
NAMED |= {name: replace(NAMED[of], about=f"{of} with blur or noise in every image") for name, of in DISTORTED.items()}


def refuse_unknown(spec: Data, classes: tuple[str, ...]) -> None:
    """Raises: DataError if the specification asks for a class that is not among ``classes``, all that the set has."""
    for wanted in spec.classes or ():
        if wanted not in classes:
            near = did_you_mean(wanted, classes)
            raise DataError(f"Unknown class {wanted!r} of {spec.name!r} in 'classes'. {near}".strip())


def data_facts(data: Data | str) -> Facts | None:
    """What is known of a data set from its specification alone; None if it must be opened first.

    Raises:
        DataError: it asks for classes that the set is known not to have.

    >>> data_facts("cifar10")
    Facts(shape=(3, 32, 32), classes=10)
    >>> data_facts(Data("mnist", size=32, channels=3))
    Facts(shape=(3, 32, 32), classes=10)
    >>> data_facts("synthetic:cifar100").classes, data_facts("owner/set")
    (100, None)
    >>> data_facts(Data("cifar10", classes=("cat", "dog"))).classes
    2
    """
    spec = Data(data) if isinstance(data, str) else data
    name = spec.name.removeprefix(SYNTHETIC)
    if name not in NAMED:
        return None
    if NAMED[name].classes:
        refuse_unknown(spec, NAMED[name].classes)
    facts = NAMED[name].facts
    channels, height, width = facts.shape
    shape = (spec.channels or channels, spec.size or height, spec.size or width)
    return Facts(shape, len(spec.classes) if spec.classes else facts.classes)
