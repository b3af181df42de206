"""Files of weights: read without running anything, written without time stamps."""

from __future__ import annotations

import json
import logging
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from flowstill.errors import NetworkError, nearest
from flowstill.files import atomic_write
from flowstill.nets.beside import metadata, split

State = dict[str, Tensor]
_log = logging.getLogger("flowstill")
_STATE_KEYS = ("state_dict", "model", "student")  # where training scripts keep a network in their checkpoints
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


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
    """The tensors in a safetensors file or a ``torch.save`` checkpoint, on the CPU, by their names in the bare network.

    A checkpoint may hold its state dict under ``state_dict``, ``model`` or ``student``. The names lose the prefixes of
    DistributedDataParallel and ``torch.compile``. Nothing in the file is ever run.

    Raises:
        NetworkError: the file is missing, damaged, not a checkpoint, or holds more than tensors and plain data.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise NetworkError(f"No weights file {str(path)!r}: {_instead(path)}")
    try:
        with path.open("rb") as file:
            start = file.read(9)
        content = safetensors.torch.load_file(path) if start[8:] == b"{" else _load(path)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None and not start.startswith(b"\x80"):
            raise _unreadable(path, error) from None
        raise NetworkError(
            f"{path} was not loaded, as it could run code: it holds "
            f"{named[1] if named else 'a pickle'}, not only tensors. If you trust its source, load it in Python, "
            "write its state dict with safetensors.torch.save_file, and give that file."
        ) from None
    except Exception as error:  # damage raises many kinds of errors: zip, struct, safetensors, ...
        raise _unreadable(path, error) from None
    return _bare(_tensors(content, path))


def _instead(path: Path) -> str:
    if path.is_dir():
        return "it is a folder; name the file in it."
    if not path.parent.is_dir():
        return f"there is no folder {str(path.parent)!r}. Train that network first, or give the path of another file."
    near = nearest(path.name, (p.name for p in path.parent.iterdir()))
    return f"did you mean {near[0]!r}, in the same folder?" if near else "check the path."


def _load(path: Path) -> Any:
    with path.open("rb") as file, warnings.catch_warnings():  # an open file, since torch.load goes by file names
        warnings.simplefilter("ignore")  # what torch warns of here, it also raises
        return torch.load(file, map_location="cpu", weights_only=True)


def _unreadable(path: Path, error: Exception) -> NetworkError:
    if path.stat().st_size == 0:
        return NetworkError(f"{path} is empty. Write it again, or name another file.")
    reason = re.split(r"\.\s|\n", f"{type(error).__name__}: {error}")[0]
    return NetworkError(
        f"{path} is not a checkpoint, or is damaged ({reason}). "
        "Weights are read from safetensors, and from torch.save(network.state_dict(), FILE)."
    )


def _tensors(content: Any, path: Path) -> State:
    """The state dict in a checkpoint's content."""
    if isinstance(content, Mapping):
        for key in _STATE_KEYS:
            if isinstance(content.get(key), Mapping):
                return _tensors(content[key], path)
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return {str(name): tensor for name, tensor in content.items()}
        held = f"a dict of {', '.join(map(repr, list(content)[:3])) or 'nothing'}"
    else:
        held = f"a {type(content).__name__}"
    raise NetworkError(
        f"{path}: expected a state dict, at the top or under {', '.join(map(repr, _STATE_KEYS))}. Received: {held}."
    )


def _bare(state: State) -> State:
    """The names without the prefixes of wrappers."""
    for prefix in _WRAPPERS * 2:  # they nest, either way round
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
