"""Files of weights: read without running anything, written without time stamps."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from flowstill.errors import NetworkError, nearest
from flowstill.files import atomic_write
from flowstill.nets.beside import metadata, split
from flowstill.nets.contents import State, find_state
from flowstill.nets.pickles import load_pickle
from flowstill.nets.shards import INDEX, file_in, read_index, read_shards

_log = logging.getLogger("flowstill")


def save_weights(
    network: nn.Module | Mapping[str, Any], path: str | Path, texts: Mapping[str, str] | None = None
) -> None:
    """Write a network's state, or a state dict, as safetensors: the same weights give the same bytes.

    Tensors that share memory are written separately; memory formats are not kept. Other values, as from
    ``get_extra_state``, go into the file's metadata if they are plain data; what is not is left out, with a warning. The
    file is written whole or not at all.

    Args:
        network: a network, or its state dict.
        path: the file.
        texts: to keep in the file's metadata, by name.

    Raises:
        NetworkError: a tensor holds no data.
        OSError: the file cannot be written.
    """
    state = network.state_dict() if isinstance(network, nn.Module) else network
    try:
        content, lost = as_bytes(state, texts)
    except NetworkError as error:
        raise NetworkError(f"{path}: {error}") from None
    for name in lost:
        _log.warning(f"{path}: {name!r} is left out: {left_out(state[name])}")
    atomic_write(path, content)


def as_bytes(state: Mapping[str, Any], texts: Mapping[str, str] | None = None) -> tuple[bytes, list[str]]:
    """A state dict as the content of a safetensors file, and the names of the values that are not in it.

    Args:
        state: name -> value.
        texts: further texts for the file's metadata, by name.

    Raises:
        NetworkError: a tensor holds no data.
    """
    for name, value in state.items():
        if isinstance(value, Tensor) and value.is_meta:
            raise NetworkError(f"{name!r} is a meta tensor without data; only tensors with data can be saved.")
    plain, beside, lost = split(state)
    # A clone each, as safetensors refuses shared memory and gaps.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in plain.items()
    }
    file = safetensors.torch.save(tensors, metadata={"format": "pt", **metadata(beside), **(texts or {})})
    return _sorted(file), lost


def _sorted(file: bytes) -> bytes:
    """A safetensors file's bytes with its metadata in alphabetical order; the library writes them in any."""
    start = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + file[start:]


def left_out(value: Any) -> str:
    """Why a value is not saved."""
    return f"a {type(value).__name__} is more than tensors, numbers, texts and containers of them, or too large."


def read_weights(path: str | Path) -> State:
    """The tensors in a checkpoint, on the CPU, by their names in the bare network.

    Nothing in a file is ever run. Plain data that training scripts put beside the weights, such as ``argparse.Namespace``
    and numpy's numbers, is read past.

    Args:
        path: a safetensors file, a ``torch.save`` checkpoint, the index of a sharded one, or a folder with one of these
            as the Hugging Face hub lays it out. ``FILE#KEY`` names one network of several: the key it is kept under, such
            as ``checkpoint.pth#state_dict_ema``, or what its names begin with, such as ``checkpoint.pth#teacher``.

    Returns:
        The tensors. The names lose the prefixes of DistributedDataParallel and ``torch.compile``.

    Raises:
        NetworkError: the file is missing, damaged, not a checkpoint, holds more than tensors and plain data, or holds
            several networks and the path names none.
    """
    state, notices = read_state(path)
    for notice in notices:
        _log.warning(notice)
    return state


def read_state(path: str | Path) -> tuple[State, list[str]]:
    """``read_weights``, with its notices, which are not logged."""
    file, key = weights_file(path)
    return find_state(_read(file), key, str(file))


def read_content(path: str | Path) -> tuple[Any, Mapping[str, Any], str]:
    """All that a checkpoint holds, the notes in its safetensors or its index, and the key after ``#``.

    Raises:
        NetworkError: as ``read_weights``.
    """
    file, key = weights_file(path)
    notes: Mapping[str, Any] = {}
    content = _read(file)
    if file.name.endswith(INDEX):
        notes = read_index(file).get("metadata") or {}
    elif _is_safetensors(file):
        with safetensors.safe_open(file, "pt") as opened:
            notes = opened.metadata() or {}
    return content, notes, key


def weights_file(path: str | Path) -> tuple[Path, str]:
    """The file of weights that ``FILE`` or ``FILE#KEY`` names, and the key, which is empty if there is none.

    Raises:
        NetworkError: there is no such file.
    """
    whole, key = Path(path).expanduser(), ""
    if not whole.exists() and "#" in whole.name:
        name, _, key = whole.name.rpartition("#")
        whole = whole.with_name(name) if name else whole.parent
    if whole.is_dir():
        whole = file_in(whole)
    if not whole.is_file():
        raise NetworkError(f"No weights file {str(whole)!r}: {_instead(whole)}")
    return whole, key


def _read(path: Path) -> Any:
    """The content of a file, or of all the files of an index.

    Raises:
        NetworkError: it cannot be read.
    """
    if path.name.endswith(INDEX):
        return read_shards(path, _read)
    try:
        with torch.device("cpu"):  # under meta, some versions would read no data
            return safetensors.torch.load_file(path) if _is_safetensors(path) else load_pickle(path)
    except NetworkError:
        raise
    except Exception as error:  # damage raises many kinds of errors: zip, struct, safetensors, ...
        raise _unreadable(path, error) from None


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _instead(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {str(path.parent)!r}. Train that network first, or give the path of another file."
    near = nearest(path.name, (p.name for p in path.parent.iterdir()))
    return f"did you mean {near[0]!r}, in the same folder?" if near else "check the path."


def _unreadable(path: Path, error: Exception) -> NetworkError:
    if path.stat().st_size == 0:
        return NetworkError(f"{path} is empty. Write it again, or name another file.")
    with path.open("rb") as file:
        begins = file.read(64).lstrip().lower()
    if begins.startswith(b"version https://git-lfs"):
        return NetworkError(f"{path} is a pointer of Git LFS, not the weights. Fetch them: git lfs pull.")
    if begins.startswith((b"<!doctype", b"<html")):
        return NetworkError(f"{path} is a web page, not weights. Download the file itself.")
    reason = re.split(r"\.\s|\n", f"{type(error).__name__}: {error}")[0]
    return NetworkError(
        f"{path} is not a checkpoint, or is damaged ({reason}). "
        "Weights are read from safetensors, and from torch.save(network.state_dict(), FILE)."
    )
