"""Runs recipes, on Lightning Fabric: one loop for every method."""

from flowstill.engine.distillation import distill
from flowstill.engine.training import evaluate, train

__all__ = ["distill", "evaluate", "train"]
