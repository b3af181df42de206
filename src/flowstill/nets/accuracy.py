"""The accuracy that a checkpoint says its network has."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from flowstill.nets.checkpoints import read_content
from flowstill.nets.contents import at, is_copy, networks_in
from flowstill.nets.pickles import Array

_MEASURES = {"acc", "accuracy", "prec", "precision", "top", "metric"}
_TEST, _VALIDATION, _BEST = {"test"}, {"val", "valid", "validation", "eval", "dev"}, {"best", "max"}
_SAID = {"1", "at", "rank", "pct", "percent", "final", "last", "so", "far", "ema"}  # change nothing
_FOLDERS = {
    "callbacks",
    "metrics",
    "metric",
    "results",
    "result",
    "scores",
    "stats",
    "performance",
    "summary",
    "meta",
    "info",
}
_MONITORED = ("current_score", "best_model_score")  # Lightning's, of the value named by 'monitor'


def recorded_accuracy(path: str | Path) -> float | None:
    """The top-1 accuracy that a checkpoint records beside its weights, in per cent; None if it records none.

    It is looked for by the names that training scripts use (``best_prec1``, ``acc``, ``val_acc``, ``test_top1``,
    ``metric``, ...), in dictionaries such as ``metrics`` too, and in the metadata of safetensors. An accuracy on test images
    comes before one on validation images, and the accuracy of these weights before the best in their training. A value up
    to 1 is a share. A value of 0, which scripts begin with, counts as none.

    Args:
        path: see ``read_weights``. With ``FILE#KEY``, where the file holds other networks too, only what stands under that
            key.

    Raises:
        NetworkError: the file cannot be read.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"weight": torch.ones(1, 1)}, "best_acc": 0.75}, f"{folder}/w.pth")
        ...     recorded_accuracy(f"{folder}/w.pth")
        75.0
    """
    content, notes, key = read_content(path)
    if key:
        inner, prefix = at(content, key)
        found = _best_known(inner) if not prefix else None
        others = [place for place, _ in networks_in(content) if not is_copy(place)]
        if found is not None or prefix or len(others) > 1:
            return found
    found = _best_known(content)
    return found if found is not None else _best_known(notes)


def _best_known(content: Any) -> float | None:
    if not isinstance(content, Mapping):
        return None
    found = sorted((order, value) for order, value in _accuracies(content, content, ()))
    return found[0][1] if found else None


def _accuracies(
    content: Mapping[Any, Any], whole: Mapping[Any, Any], above: tuple[str, ...]
) -> Iterator[tuple[tuple[bool, int], float]]:
    """Each accuracy in per cent, after its order of preference."""
    for key, value in content.items():
        words = (*above, *_words(str(key)))
        if isinstance(value, Mapping):
            monitored = [value[name] for name in _MONITORED if name in value]
            if isinstance(value.get("monitor"), str) and monitored:
                words, value = (*above, *_words(value["monitor"])), monitored[0]
            elif len(words) < 8:
                yield from _accuracies(value, whole, tuple(word for word in words if word not in _FOLDERS))
                continue
        order, percent = _order(words), _percent(value)
        if order is not None and percent is not None and _is_plausible(words, value, whole):
            yield order, percent


def _words(key: str) -> tuple[str, ...]:
    """The words of a key: ``best_prec1``, ``valAccuracy``, ``Acc@1`` -> best prec 1, val accuracy, acc 1."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", key))


def _order(words: tuple[str, ...]) -> tuple[bool, int] | None:
    """How much an accuracy of this name says of the weights in the file, the most first; None if it is no accuracy."""
    said = set(words)
    if not said & _MEASURES or said - (_MEASURES | _TEST | _VALIDATION | _BEST | _SAID):
        return None
    if "1" not in said and not said & {"acc", "accuracy", "prec", "metric"}:
        return None  # 'top' or 'precision' of what
    source = 0 if said & _TEST else 1 if said & _VALIDATION else 3 if "metric" in said else 2
    return bool(said & _BEST), source


def _is_plausible(words: tuple[str, ...], value: Any, whole: Mapping[Any, Any]) -> bool:
    """Whether a number is an accuracy if its name is only ``metric``, as timm calls it: it may also be a loss."""
    if {*words} & (_MEASURES - {"metric"}):
        return True
    measured = getattr(whole.get("args"), "eval_metric", "top1")
    return measured == "top1" and (_number(value) or 0) > 1


def _percent(value: Any) -> float | None:
    number = _number(value)
    if number is None or not math.isfinite(number) or not 0 < number <= 100:
        return None
    return number * 100 if number <= 1 else number


def _number(value: Any) -> float | None:
    if isinstance(value, Array) and value.values is not None and value.values.size == 1:
        value = value.values.item()
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, str):
        try:
            value = float(value.strip().removesuffix("%"))
        except ValueError:
            return None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
