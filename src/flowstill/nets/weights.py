"""Weights from a file into a network, with the head replaced where the classes differ."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowstill.nets.beside import is_plain, read_beside
from flowstill.nets.checkpoints import read_state, weights_file
from flowstill.nets.fitting import Fit, fit

_log = logging.getLogger("flowstill")


def load_weights(network: nn.Module, path: str | Path) -> list[str]:
    """Read a file's weights into ``network``, and report what was changed to make them fit.

    A prefix that all names in the file share is dropped. A few layers under other names are read if just one layer of the
    network has their shapes. A classifier head (a Linear or 1x1 convolution) for another number of classes keeps its
    initial weights. On ``meta``, names and shapes are checked and nothing is copied.

    Args:
        network: takes the weights.
        path: see ``read_weights``.

    Returns:
        Notices, also logged as warnings to ``flowstill``.

    Raises:
        NetworkError: the file cannot be read, or names or shapes do not fit; the network is then untouched.
    """
    notices = fit_weights(network, path).notices
    for notice in notices:
        _log.warning(notice)
    return notices


def fit_weights(network: nn.Module, path: str | Path) -> Fit:
    """``load_weights`` without its warnings: ``notices`` holds them, and ``heads`` tells of heads that stay fresh."""
    state, notices = read_state(path)
    fitted = load_state(network, state, read_beside(weights_file(path)[0]), str(path))
    fitted.notices[:0] = notices
    return fitted


def load_state(network: nn.Module, state: Mapping[str, Tensor], beside: Mapping[str, Any], path: str) -> Fit:
    """``fit_weights`` with the content of a file; nothing is logged.

    Args:
        network: takes them.
        state: the file's tensors.
        beside: its other values.
        path: what messages call the file.

    Raises:
        NetworkError: names or shapes do not fit; the network is then untouched.
    """
    whole = network.state_dict(keep_vars=True)
    own = _plain(whole)
    others = whole.keys() - own.keys()
    fitted = fit(
        own, {name: value for name, value in state.items() if name not in others}, path, type(network).__name__
    )
    if not any(tensor.is_meta for tensor in own.values()):
        more = {name: value for name, value in {**state, **beside}.items() if name in others}
        given = OrderedDict({**fitted.kept, **more})
        if beside and hasattr(whole, "_metadata"):
            given._metadata = whole._metadata  # type: ignore[attr-defined]  # quantised layers ask for their version
        with torch.inference_mode(any(tensor.is_inference() for tensor in own.values())):  # only there can they be set
            network.load_state_dict(given, strict=False)
    return fitted


def fitted_weights(own: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The weights in a file that ``load_weights`` would read into a network with this state, by its names.

    Raises:
        NetworkError: as ``load_weights``.
    """
    return fit(_plain(own), read_state(path)[0], str(path), "the network").kept


def head_classes(network: nn.Module, path: str | Path) -> int | None:
    """The number of classes of the head in the file if it differs from the network's; else None.

    Raises:
        NetworkError: as ``load_weights``.
    """
    own = network.state_dict(keep_vars=True)
    state = {name: value for name, value in read_state(path)[0].items() if name not in own or name in _plain(own)}
    heads = fit(_plain(own), state, str(path), type(network).__name__).heads
    return next((stored for stored, _ in heads.values()), None)


def _plain(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights and buffers, without what ``get_extra_state`` gives and what is quantised."""
    return {name: t for name, t in state.items() if is_plain(t) and name.rpartition(".")[2] != "_extra_state"}
