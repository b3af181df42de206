"""What passes from teacher to student: one paper's idea per file, one line each in ``REGISTRY``."""

from __future__ import annotations

import importlib
from typing import Any

from flowstill.errors import RecipeError, did_you_mean
from flowstill.knowledge.base import Knowledge
from flowstill.specification import validated

__all__ = ["REGISTRY", "Knowledge", "knowledge_class", "parse_knowledge"]

REGISTRY = {
    "labels": "flowstill.knowledge.labels:Labels",
    "fsp": "flowstill.knowledge.fsp:FSP",
    "dense": "flowstill.knowledge.dense:Dense",
    "svd": "flowstill.knowledge.svd:SVD",
    "soft_logits": "flowstill.knowledge.logits:SoftLogits",
    "hints": "flowstill.knowledge.hints:Hints",
    "nst": "flowstill.knowledge.nst:NST",
    "attention": "flowstill.knowledge.attention:Attention",
    "kdgan": "flowstill.knowledge.kdgan:KDGAN",
    "aggregation": "flowstill.knowledge.aggregation:Aggregation",
    "aggregated": "flowstill.knowledge.aggregation:Aggregated",
}


def knowledge_class(name: str) -> type[Knowledge]:
    """The specification called ``name``. Raises: RecipeError."""
    if name not in REGISTRY:
        raise RecipeError(f"Unknown knowledge {name!r}. {did_you_mean(name, REGISTRY)}")
    module, _, attribute = REGISTRY[name].partition(":")
    found: type[Knowledge] = getattr(importlib.import_module(module), attribute)
    return found


def parse_knowledge(value: Any) -> Knowledge:
    """Read ``"fsp"``, ``{"name": "fsp", "weighting": "sum"}`` or a Knowledge itself."""
    if isinstance(value, Knowledge):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise RecipeError("a knowledge is a name or a mapping with a key 'name', such as {name: fsp, weighting: sum}")
    return validated(knowledge_class(value["name"]), value)
