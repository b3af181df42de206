"""Images in batches: from a name, a folder or the Hugging Face hub to augmented, normalised tensors on the device."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flowstill.data.named import NAMED, Facts, data_facts
from flowstill.data.reader import READERS, Reader, Source, Wanted, register_reader
from flowstill.data.spec import Augment, Data

if TYPE_CHECKING:
    from flowstill.data.batch import Batch
    from flowstill.data.dataset import ImageData
    from flowstill.data.locate import find_source
    from flowstill.data.opening import find_facts, open_data

__all__ = [
    "NAMED",
    "READERS",
    "Augment",
    "Batch",
    "Data",
    "Facts",
    "ImageData",
    "Reader",
    "Source",
    "Wanted",
    "data_facts",
    "find_facts",
    "find_source",
    "open_data",
    "register_reader",
]

_LATE = {  # they import torch
    "Batch": "batch",
    "ImageData": "dataset",
    "find_facts": "opening",
    "find_source": "locate",
    "open_data": "opening",
}


def __getattr__(name: str) -> Any:
    """Import on first use what is slow to import."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
