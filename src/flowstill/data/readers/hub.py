"""Data sets of the Hugging Face hub."""

from __future__ import annotations

from typing import ClassVar

from flowstill.data.reader import Reader, Source, register_reader
from flowstill.data.splits import Split
from flowstill.data.tables import find_columns, quiet, table_split
from flowstill.errors import DataError, option


@register_reader("hub")
class Hub(Reader):
    """A set by its name on the hub, downloaded once into the hub's cache."""

    about = "a data set of the Hugging Face hub, by owner/name"
    local: ClassVar[bool] = False

    def read(self, source: Source) -> tuple[Split, Split | None]:
        """Training and test images.

        Raises:
            DataError: the set does not exist or lacks a split, or the hub cannot be reached.
        """
        import datasets

        with quiet():
            try:
                tables = datasets.load_dataset(source.place)
            except Exception as error:  # the hub's client raises its HTTP library's errors
                raise DataError(_hub_failure(source, error)) from None
        names = ["train", *(name for name in source.tests if source.with_test and name in tables)][
            : 1 + source.with_test
        ]
        if "train" not in tables or len(names) < 1 + source.with_test:
            raise DataError(
                f"The hub's data set {source.place!r} has splits {', '.join(map(repr, tables))}; training and test "
                "images are needed ('train' and 'test'). Set 'hold_out' to test on some training images instead."
            )
        splits = []
        for name in names:
            place = f"split {name!r} of {source.place!r}"
            image, label = find_columns(tables[name].features, place)
            table = tables[name].select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
            declared = getattr(tables[name].features[label], "names", None)
            splits.append(table_split(table, image, label, declared, place, ((place, len(table)),)))
        return splits[0], splits[1] if source.with_test else None


def _hub_failure(source: Source, error: Exception) -> str:
    import datasets

    fix = f"give a local copy with {option('data_root', 'DIR')}, as DIR/{source.name}/{{train,test}}.parquet"
    text = " ".join(str(error).split())[:300].rstrip(".")
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return (
            f"There is no folder {source.name!r}, and the Hugging Face hub has no data set {source.place!r} that you "
            f"can read: {text}. Check the spelling, log in with 'hf auth login' if it is gated, or {fix}."
        )
    network = (
        "Connect to the network (and unset HF_HUB_OFFLINE), or else: " if isinstance(error, ConnectionError) else ""
    )
    return (
        f"There is no folder {source.name!r}, and {source.place!r} could not be downloaded from the Hugging Face hub: "
        f"{type(error).__name__}: {text}. {network}{fix[0].upper()}{fix[1:]}."
    )
