"""Two ways of doing one thing, measured in turn, so that a noisy machine is noisy to both; and how the result is told."""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

import flowstill as fs
from flowstill.cli.memory import keep_freed_memory
from flowstill.engine.precision import Precision, choose

HEADER = "| what | shapes | reference | ours | ratio | goal | met |\n|---|---|---|---|---|---|---|"
Way = Callable[[], Any]


@dataclass(frozen=True)
class Options:
    """What every script is told. repeats: instead of its own number."""

    device: torch.device
    repeats: int | None
    asked: str

    @functools.cached_property
    def precision(self) -> Precision:
        """What ``flowstill`` picks here to train a ResNet-8, unless another was asked for."""
        if self.asked != "auto":
            return Precision(*self.asked.split(","))  # type: ignore[arg-type]
        return choose("auto", lambda: fs.create("resnet8", num_classes=10), (3, 32, 32), 256, self.device)


def options() -> Options:
    """Of the command line."""
    parser = argparse.ArgumentParser(description="Prints a row for each ratio: ours against a reference.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, help="instead of each script's own number")
    parser.add_argument("--precision", default="auto", help="such as 'bf16,channels_last'")
    given = parser.parse_args()
    if given.device == "cpu":
        keep_freed_memory()  # as a run does; a reference in the same process gains as much
    # With its number, as data sets and batches name it.
    return Options(torch.device("cuda", 0) if given.device == "cuda" else CPU, given.repeats, given.precision)


CPU = torch.device("cpu")


class Goal(NamedTuple):
    """``at least`` so many times as good as the reference, or ``at most`` so many times what the reference takes."""

    bound: Literal["at least", "at most"]
    value: float

    def ratio(self, reference: float, ours: float) -> float:
        return reference / ours if self.bound == "at least" else ours / reference

    def met(self, ratio: float) -> bool:
        return ratio >= self.value if self.bound == "at least" else ratio <= self.value


def interleaved(ways: dict[str, Way], repeats: int, asked: Options) -> dict[str, float]:
    """Median seconds of each way, run in turn after one warm-up each; every other round in the reverse order."""
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(asked.repeats or repeats):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            synchronise(asked.device)
            start = time.perf_counter()
            ways[name]()
            synchronise(asked.device)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(way: Way, device: torch.device) -> int:
    """The most bytes that tensors take while ``way`` runs, beyond those that were there before.

    On a CPU from the allocator's own record, which is the same in every run. What the process holds would count what
    malloc keeps for later, libraries loaded on the way and compiled kernels too. Scratch memory inside kernels is not in
    it. On a GPU torch counts in the same way.
    """
    way()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        way()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        way()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def compare(
    what: str,
    shapes: str,
    ways: dict[str, Way],
    goal: Goal,
    asked: Options,
    repeats: int = 7,
    share: int = 1,
    beside: bool = False,
) -> None:
    """Time two ways, the reference first, and print their row.

    share: how many steps each way does. beside: there is no goal for it.
    """
    (name, reference), (_, ours) = ((n, s / share) for n, s in interleaved(ways, repeats, asked).items())
    row(what, shapes, name, reference, ours, goal, beside=beside)


def row(
    what: str,
    shapes: str,
    name: str,
    reference: float,
    ours: float,
    goal: Goal,
    told: Callable[[float], str] | None = None,
    beside: bool = False,
) -> None:
    """Print one row: seconds in milliseconds, unless ``told`` says otherwise."""
    told = told or milliseconds
    ratio = goal.ratio(reference, ours)
    print(
        f"| {what} | {shapes} | {name}: {told(reference)} | {told(ours)} | {ratio:.2f} "
        f"| {'-' if beside else f'{goal.bound} {goal.value:g}'} "
        f"| {'-' if beside else 'yes' if goal.met(ratio) else '**no**'} |",
        flush=True,
    )


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.4g} ms"


def mebibytes(size: float) -> str:
    return f"{size / 2**20:.4g} MiB"
