"""What a network's state holds beside plain tensors: ``get_extra_state``, quantised weights.

In a safetensors file it lies in the metadata, in the form of ``torch.save``, and is read without running anything.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

KEY = "beside_tensors"  # in the metadata
_MOST = 50 * 2**20  # bytes; safetensors allows 100 MB of metadata, and the form as text takes a third more


def is_plain(value: Any) -> bool:
    """Whether safetensors can hold the value itself."""
    if not isinstance(value, Tensor) or value.is_quantized or value.layout is not torch.strided:
        return False
    return value.dtype not in (torch.complex32, torch.complex128)


def split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """A state dict's plain tensors, what can be saved beside them, and the names of the values that cannot be saved."""
    plain = {name: value for name, value in state.items() if is_plain(value)}
    beside, lost = {}, []
    for name, value in state.items():
        if name not in plain:
            try:
                beside[name] = _read(_written(value))
            except Exception:  # whatever pickle raises, and torch's refusal to read it again
                lost.append(name)
    if len(_written(beside)) > _MOST:
        return plain, {}, [*beside, *lost]
    return plain, beside, lost


def metadata(beside: Mapping[str, Any]) -> dict[str, str]:
    """``beside`` as the metadata of a safetensors file; nothing if there is nothing."""
    return {KEY: base64.b64encode(_written(dict(beside))).decode()} if beside else {}


def read_beside(file: str | Path | bytes) -> dict[str, Any]:
    """What lies beside the tensors in a file that ``save_weights`` wrote, or in its content; empty for other files."""
    if isinstance(file, bytes):
        size = int.from_bytes(file[:8], "little")
        found = json.loads(file[8 : 8 + size]).get("__metadata__", {})
    else:
        try:
            with safetensors.safe_open(Path(file).expanduser(), "pt") as opened:
                found = opened.metadata() or {}
        except (safetensors.SafetensorError, OSError):  # a torch.save checkpoint
            return {}
    read: dict[str, Any] = _read(base64.b64decode(found[KEY])) if KEY in found else {}
    return read


def _written(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _read(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
