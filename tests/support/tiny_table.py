"""A table that trains in seconds, and what a paper would print of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowstill.papers.plan import Plan
from flowstill.papers.printed import Printed
from flowstill.papers.reproduce import reproduce
from flowstill.papers.table import Table
from support.compared_runs import PLAIN

TINY = """
name: tiny-table
about: small
data: {name: digits, batch: 32, augment: {shift: 1}}
jobs:
  teacher:
    network: &net {name: resnet8, options: {width: 0.5}}
    stages: [&task {name: task, steps: 6, lr: 0.05, task: labels}]
  scratch: {network: *net, stages: [*task]}
  first: {network: *net, teacher: teacher, stages: [&flow {name: transfer, steps: 4, lr: 0.01, transfer: fsp}]}
  fsp_1: {network: *net, start: {job: first, stage: transfer}, stages: [*task], seed: 1}
  fsp_2: {network: *net, start: {job: first, stage: transfer}, stages: [*task], seed: 2}
  kd: {network: *net, teacher: teacher, stages: [{name: joint, steps: 6, lr: 0.05, task: labels, transfer: soft_logits}]}
ensembles: {fsp: {jobs: [fsp_1, fsp_2]}}
"""
PRINTED = Printed(
    "A paper, Table 9",
    ("net1", "net2", "average", "ensemble", "total_iterations"),
    {"scratch": (50.0,) * 4 + (6.0,), "fsp": (60.0, 62.0, 61.0, 63.0, 16.0)},
)


def make(plan: Plan, out: Path, **options: Any) -> Table:
    """Reproduce without a word."""
    return reproduce(plan, out, say=lambda text: None, **{**PLAIN, **options})
