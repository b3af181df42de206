"""Runs recipes, on Lightning Fabric: one step for every method."""

from flowstill.engine.training import evaluate, train

__all__ = ["evaluate", "train"]
