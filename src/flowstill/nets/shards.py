"""Weights in several files: an index with its shards, or a folder as the Hugging Face hub lays it out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

from flowstill.errors import NetworkError

INDEX = ".index.json"
_IN_FOLDERS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".th", ".ckpt", ".tar")


def file_in(folder: Path) -> Path:
    """The file of weights, or its index, in a folder as the Hugging Face hub lays it out.

    Raises:
        NetworkError: it has no such file.
    """
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    if any(folder.glob("*.distcp")):
        raise NetworkError(
            f"{folder} is a distributed checkpoint. Join its parts first: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth."
        )
    held = sorted(file.name for file in folder.iterdir() if file.suffix in _WEIGHTS)
    near = f", such as {', '.join(map(repr, held[:3]))}" if held else f". Expected {', '.join(map(repr, _IN_FOLDERS))}"
    raise NetworkError(f"No weights file {str(folder)!r}: it is a folder; name the file in it{near}.")


def read_shards(index: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    """All entries that an index names, each from its file in the index's folder.

    Args:
        index: the index.
        read: reads one shard.

    Raises:
        NetworkError: the index is damaged, or a file or an entry is missing.
    """
    places = read_index(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise NetworkError(f"{index} is not an index of weights: expected the file of each tensor under 'weight_map'.")
    files = sorted(set(places.values()))
    for file in files:
        if PureWindowsPath(file).name != file or file in ("", ".", ".."):  # both kinds of slashes, and drives
            raise NetworkError(
                f"{index} names {file!r}, which is not in its own folder. Only files beside it are read."
            )
    lost = [file for file in files if not (index.parent / file).is_file()]
    if lost:
        raise NetworkError(
            f"{index} names {len(files)} files, of which {len(lost)} are missing: {', '.join(map(repr, lost[:3]))}. "
            "Put them beside it."
        )
    whole: dict[str, Any] = {}
    for file in files:
        shard = read(index.parent / file)
        for name in (name for name, place in places.items() if place == file):
            if not isinstance(shard, dict) or name not in shard:
                raise NetworkError(f"{index.parent / file} lacks {name!r}, which {index.name} says it holds.")
            whole[name] = shard[name]
    return whole


def read_index(index: Path) -> dict[str, Any]:
    """The index.

    Raises:
        NetworkError: it is not JSON.
    """
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NetworkError(f"{index} is not an index of weights, or is damaged ({error}).") from None
    return content if isinstance(content, dict) else {}
