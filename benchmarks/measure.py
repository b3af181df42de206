"""Timing two ways of doing one thing, interleaved, so that a noisy machine is noisy to both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def interleaved(ways: dict[str, Callable[[], Any]], repeats: int = 7) -> dict[str, float]:
    """Median seconds of each way, run in turn after one warm-up each."""
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def report(what: str, shapes: str, ways: dict[str, Callable[[], Any]], ours: str, repeats: int = 7) -> None:
    """Print one line for each reference: how many times longer it takes than ``ours``."""
    seconds = interleaved(ways, repeats)
    for name, taken in seconds.items():
        if name != ours:
            print(f"| {what} | {shapes} | {name}: {1e3 * taken:.1f} ms | {1e3 * seconds[ours]:.1f} ms "
                  f"| {taken / seconds[ours]:.2f} |")  # fmt: skip
