"""Teach a small vision network by the flow between the layers of a large one.

The names here are loaded when they are first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowstill.engine import distill, evaluate, train
    from flowstill.errors import DataError, FlowstillError, NetworkError, RecipeError, RunError, ShapeError, TapError
    from flowstill.knowledge.dense import Dense
    from flowstill.knowledge.fsp import FSP, fsp_matrix
    from flowstill.knowledge.svd import SVD, truncated_svd
    from flowstill.nets import create
    from flowstill.nets.spec import Net
    from flowstill.recipes.load import load_recipe
    from flowstill.recipes.schema import Data, Job, Player, Recipe, Stage, Term, Update
    from flowstill.runs import Run
    from flowstill.sections import Section, find_sections, pair_sections
    from flowstill.taps import Flow, Reading, Tap, Tapped
    from flowstill.transfer.recoding import Recoding, SparseRecoding

    __version__: str

_HOMES = {
    "flowstill.engine": ("distill", "evaluate", "train"),
    "flowstill.errors": (
        "DataError",
        "FlowstillError",
        "NetworkError",
        "RecipeError",
        "RunError",
        "ShapeError",
        "TapError",
    ),
    "flowstill.knowledge.dense": ("Dense",),
    "flowstill.knowledge.fsp": ("FSP", "fsp_matrix"),
    "flowstill.knowledge.svd": ("SVD", "truncated_svd"),
    "flowstill.nets": ("create",),
    "flowstill.nets.spec": ("Net",),
    "flowstill.recipes.load": ("load_recipe",),
    "flowstill.recipes.schema": ("Data", "Job", "Player", "Recipe", "Stage", "Term", "Update"),
    "flowstill.runs": ("Run",),
    "flowstill.sections": ("Section", "find_sections", "pair_sections"),
    "flowstill.taps": ("Flow", "Reading", "Tap", "Tapped"),
    "flowstill.transfer.recoding": ("Recoding", "SparseRecoding"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "FSP",
    "SVD",
    "Data",
    "DataError",
    "Dense",
    "Flow",
    "FlowstillError",
    "Job",
    "Net",
    "NetworkError",
    "Player",
    "Reading",
    "Recipe",
    "RecipeError",
    "Recoding",
    "Run",
    "RunError",
    "Section",
    "ShapeError",
    "SparseRecoding",
    "Stage",
    "Tap",
    "TapError",
    "Tapped",
    "Term",
    "Update",
    "__version__",
    "create",
    "distill",
    "evaluate",
    "find_sections",
    "fsp_matrix",
    "load_recipe",
    "pair_sections",
    "train",
    "truncated_svd",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("flowstill")
    if name not in _HOME:
        raise AttributeError(f"module 'flowstill' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value  # the next look-up is a plain one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
