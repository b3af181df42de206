"""Teach a small vision network by the flow between the layers of a large one.

The names here are loaded when they are first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowstill.api import distill, evaluate, load_student, train
    from flowstill.data.batch import Batch
    from flowstill.data.reader import register_reader
    from flowstill.data.spec import Augment
    from flowstill.errors import (
        DataError,
        DivergedError,
        FlowstillError,
        NetworkError,
        RecipeError,
        RunError,
        ShapeError,
        TapError,
    )
    from flowstill.features.pairs import Pairs, SectionPair, pair_sections
    from flowstill.features.sections import Section, find_sections
    from flowstill.features.taps import Flow, Reading, Tap, Tapped
    from flowstill.knowledge.aggregation import (
        Aggregated,
        Aggregation,
        AggregationLoss,
        MatchingLoss,
        matching_loss,
        transport_cost,
    )
    from flowstill.knowledge.attention import Attention, AttentionLoss, attention_loss, attention_map
    from flowstill.knowledge.dense import Dense
    from flowstill.knowledge.fsp import FSP, FSPLoss, fsp_loss, fsp_matrix
    from flowstill.knowledge.hints import Hints, HintsLoss, hint_loss
    from flowstill.knowledge.kdgan import KDGAN, KDGANLoss
    from flowstill.knowledge.labels import LabelLoss, Labels
    from flowstill.knowledge.logits import SoftLogits, SoftLogitsLoss, soft_logits_loss
    from flowstill.knowledge.nst import NST, NSTLoss, nst_loss
    from flowstill.knowledge.svd import SVD, SVDLoss, dfv_loss, truncated_svd
    from flowstill.nets import create
    from flowstill.nets.preprocessing import Preprocessing
    from flowstill.nets.registry import register_network
    from flowstill.nets.spec import Net
    from flowstill.recipes.load import load_recipe
    from flowstill.recipes.recipe import Data, Job, Player, Recipe, Stage, Term, Update
    from flowstill.reports.columns import register_column
    from flowstill.runs import Run
    from flowstill.schema import specification
    from flowstill.transfer.knowledge import Knowledge, Loss, Setting, register
    from flowstill.transfer.methods import register_method
    from flowstill.transfer.procedures import alone, blocks, cyclic, joint, register_procedure, two_stage
    from flowstill.transfer.recoding import Recoding, SparseRecoding
    from flowstill.transfer.rules import AdaptiveClip, Rule, Sum, register_rule
    from flowstill.transfer.stages import Optimizer

    __version__: str

_HOMES = {
    "flowstill.data.batch": ("Batch",),
    "flowstill.data.reader": ("register_reader",),
    "flowstill.data.spec": ("Augment",),
    "flowstill.api": ("distill", "evaluate", "load_student", "train"),
    "flowstill.errors": (
        "DataError",
        "DivergedError",
        "FlowstillError",
        "NetworkError",
        "RecipeError",
        "RunError",
        "ShapeError",
        "TapError",
    ),
    "flowstill.features.pairs": ("Pairs", "SectionPair", "pair_sections"),
    "flowstill.features.sections": ("Section", "find_sections"),
    "flowstill.features.taps": ("Flow", "Reading", "Tap", "Tapped"),
    "flowstill.knowledge.aggregation": (
        "Aggregated",
        "Aggregation",
        "AggregationLoss",
        "MatchingLoss",
        "matching_loss",
        "transport_cost",
    ),
    "flowstill.knowledge.attention": ("Attention", "AttentionLoss", "attention_loss", "attention_map"),
    "flowstill.knowledge.dense": ("Dense",),
    "flowstill.knowledge.fsp": ("FSP", "FSPLoss", "fsp_loss", "fsp_matrix"),
    "flowstill.knowledge.hints": ("Hints", "HintsLoss", "hint_loss"),
    "flowstill.knowledge.kdgan": ("KDGAN", "KDGANLoss"),
    "flowstill.knowledge.labels": ("LabelLoss", "Labels"),
    "flowstill.knowledge.logits": ("SoftLogits", "SoftLogitsLoss", "soft_logits_loss"),
    "flowstill.knowledge.nst": ("NST", "NSTLoss", "nst_loss"),
    "flowstill.knowledge.svd": ("SVD", "SVDLoss", "dfv_loss", "truncated_svd"),
    "flowstill.nets": ("create",),
    "flowstill.nets.preprocessing": ("Preprocessing",),
    "flowstill.nets.registry": ("register_network",),
    "flowstill.nets.spec": ("Net",),
    "flowstill.recipes.load": ("load_recipe",),
    "flowstill.recipes.recipe": ("Data", "Job", "Player", "Recipe", "Stage", "Term", "Update"),
    "flowstill.reports.columns": ("register_column",),
    "flowstill.runs": ("Run",),
    "flowstill.schema": ("specification",),
    "flowstill.transfer.knowledge": ("Knowledge", "Loss", "Setting", "register"),
    "flowstill.transfer.methods": ("register_method",),
    "flowstill.transfer.procedures": ("alone", "blocks", "cyclic", "joint", "register_procedure", "two_stage"),
    "flowstill.transfer.recoding": ("Recoding", "SparseRecoding"),
    "flowstill.transfer.rules": ("AdaptiveClip", "Rule", "Sum", "register_rule"),
    "flowstill.transfer.stages": ("Optimizer",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "FSP",
    "KDGAN",
    "NST",
    "SVD",
    "AdaptiveClip",
    "Aggregated",
    "Aggregation",
    "AggregationLoss",
    "Attention",
    "AttentionLoss",
    "Augment",
    "Batch",
    "Data",
    "DataError",
    "Dense",
    "DivergedError",
    "FSPLoss",
    "Flow",
    "FlowstillError",
    "Hints",
    "HintsLoss",
    "Job",
    "KDGANLoss",
    "Knowledge",
    "LabelLoss",
    "Labels",
    "Loss",
    "MatchingLoss",
    "NSTLoss",
    "Net",
    "NetworkError",
    "Optimizer",
    "Pairs",
    "Player",
    "Preprocessing",
    "Reading",
    "Recipe",
    "RecipeError",
    "Recoding",
    "Rule",
    "Run",
    "RunError",
    "SVDLoss",
    "Section",
    "SectionPair",
    "Setting",
    "ShapeError",
    "SoftLogits",
    "SoftLogitsLoss",
    "SparseRecoding",
    "Stage",
    "Sum",
    "Tap",
    "TapError",
    "Tapped",
    "Term",
    "Update",
    "__version__",
    "alone",
    "attention_loss",
    "attention_map",
    "blocks",
    "create",
    "cyclic",
    "dfv_loss",
    "distill",
    "evaluate",
    "find_sections",
    "fsp_loss",
    "fsp_matrix",
    "hint_loss",
    "joint",
    "load_recipe",
    "load_student",
    "matching_loss",
    "nst_loss",
    "pair_sections",
    "register",
    "register_column",
    "register_method",
    "register_network",
    "register_procedure",
    "register_reader",
    "register_rule",
    "soft_logits_loss",
    "specification",
    "train",
    "transport_cost",
    "truncated_svd",
    "two_stage",
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
