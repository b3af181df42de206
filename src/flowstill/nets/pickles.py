"""Files of ``torch.save``, read without running anything in them."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import pickle
import re
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowstill.errors import NetworkError

_NUMBERS = re.compile(r"(b1|[iu][1248]|f[248]|c8|c16|[SU]\d+)")  # dtypes without pointers or fields


class _Dtype:
    """Stands in for ``numpy.dtype``, which could be given fields and pointers."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.order = str(name), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.order = state[1]

    def read(self, data: Any) -> np.ndarray[Any, Any] | None:
        """The numbers in ``data``; None if these are no numbers or text."""
        if not _NUMBERS.fullmatch(self.name) or not isinstance(data, bytes):
            return None
        values = np.frombuffer(data, np.dtype(self.order + self.name))
        return values.astype(values.dtype.newbyteorder("="))


class Array:
    """Stands in for ``numpy.ndarray``.

    Attributes:
        values: the array; None if it holds anything but numbers or text.
    """

    values: np.ndarray[Any, Any] | None = None

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, data = state
        values = dtype.read(data)
        self.values = None if values is None else values.reshape(shape, order="F" if by_columns else "C")


def _scalar(dtype: _Dtype, data: Any = None) -> Any:
    values = dtype.read(data)
    return None if values is None else values.item()


def _dict(*_: Any) -> dict[Any, Any]:
    return {}  # a defaultdict's items follow; torch puts them in plain dicts only


def _list(*_: Any) -> list[Any]:
    return []  # likewise a deque's


def _harmless() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What usual training scripts put beside the weights: plain data, or a stand-in for it, by the name in the file."""
    by_name: dict[str, Callable[..., Any]] = {
        "argparse.Namespace": argparse.Namespace,
        "types.SimpleNamespace": types.SimpleNamespace,
        "collections.defaultdict": _dict,
        "collections.deque": _list,
        "torch.torch_version.TorchVersion": str,
        "numpy.dtype": _Dtype,
        "numpy.ndarray": Array,
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # numpy 1 and 2
        by_name |= {f"{module}.scalar": _scalar, f"{module}._reconstruct": Array}
    for module in ("pathlib", "pathlib._local"):  # the second is Python 3.13's
        for name in ("Path", "PosixPath", "PurePath", "PurePosixPath"):
            by_name[f"{module}.{name}"] = pathlib.PurePosixPath
        for name in ("WindowsPath", "PureWindowsPath"):
            by_name[f"{module}.{name}"] = pathlib.PureWindowsPath
    for plain in (bool, bytes, dict, float, frozenset, int, list, slice, str, tuple):
        by_name[f"builtins.{plain.__name__}"] = plain
    for moment in (datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone):
        by_name[f"datetime.{moment.__name__}"] = moment
    for name in ("bool", "bool_", "float16", "float32", "float64", "int32", "int64", "uint8"):
        by_name[f"numpy.{name}"] = float  # the class, as somebody's default; numbers come by 'scalar'
    return [(stand_in, name) for name, stand_in in by_name.items()]


def load_pickle(path: Path) -> Any:
    """The content of a file of ``torch.save``, on the CPU, by torch's restricted reader.

    Numpy's numbers come as Python's, its arrays as ``Array``, a defaultdict as a dict.

    Raises:
        NetworkError: it holds classes that are not known to be harmless.
        Exception: of any kind, if it is damaged.
    """
    with path.open("rb") as file, warnings.catch_warnings():  # an open file, since torch.load goes by file names
        warnings.simplefilter("ignore")  # what torch warns of here, it also raises
        start = file.read(2)
        file.seek(0)
        try:
            with torch.serialization.safe_globals(_harmless()):
                return torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            why = _refusal(str(error), start)
            if why is None:
                raise
            raise NetworkError(f"{path} was not loaded{why}") from None


def _refusal(error: str, start: bytes) -> str | None:
    """Why a file was not read, to follow 'was not loaded', and the way out; None if it is damaged."""
    named = re.search(r"GLOBAL (\S+)", error)
    held = named[1] if named else ""
    if "DTensor" in error or "ShardedTensor" in held:
        return ": its tensors are sharded over processes. Gather them (full_tensor()) where they were trained."
    if "torchao" in held or "quantized" in held:
        return f": it holds {held}, so it is quantised. Give the weights from before the quantisation."
    load = "torch.load(FILE, weights_only=False)"
    if named is None and "Unsupported operand" in error and start == b"PK":
        why = ": torch's restricted reader does not read its pickle protocol, only torch.save's own (2)"
    elif "TorchScript" in error:
        why, load = ", as it could run code: it is a TorchScript archive", "torch.jit.load(FILE)"
    elif named or start[:1] == b"\x80":
        why = f", as it could run code: it holds {held or 'a pickle'}, not only tensors and plain data"
    else:
        return None
    return (
        f"{why}. If you trust its source, take the network or state dict out of {load}, write it with "
        "flowstill.nets.save_weights(..., 'weights.safetensors'), and give that file."
    )
