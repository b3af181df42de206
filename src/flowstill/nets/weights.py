"""Weights from a file into a network, with the head replaced where the classes differ."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from flowstill.nets.checkpoints import read_state
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
    return fit_weights(network, path).notices


def fit_weights(network: nn.Module, path: str | Path) -> Fit:
    """``load_weights``, with more about what was changed: ``heads`` tells of those that stay fresh."""
    own = network.state_dict(keep_vars=True)
    fitted = _fitted(own, path, type(network).__name__)
    if not any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in own.values()):
        network.load_state_dict(fitted.kept, strict=False)
    for notice in fitted.notices:
        _log.warning(notice)
    return fitted


def fitted_weights(own: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The weights in a file that ``load_weights`` would read into a network with this state, by its names.

    Raises:
        NetworkError: as ``load_weights``.
    """
    return _fitted(own, path, "the network").kept


def head_classes(network: nn.Module, path: str | Path) -> int | None:
    """The number of classes of the head in the file if it differs from the network's; else None.

    Raises:
        NetworkError: as ``load_weights``.
    """
    heads = _fitted(network.state_dict(keep_vars=True), path, type(network).__name__).heads
    return next((stored for stored, _ in heads.values()), None)


def _fitted(own: Mapping[str, Tensor], path: str | Path, kind: str) -> Fit:
    state, notices = read_state(path)
    fitted = fit(own, state, str(path), kind)
    fitted.notices[:0] = notices
    return fitted
