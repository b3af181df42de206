"""Recipes, options and names damaged at random, from a seed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from importlib import resources
from typing import Any

import yaml

TINY = """
name: tiny
about: two small networks, a few updates
data: {name: digits, batch: 16, augment: {crop: 1}}
jobs:
  teacher:
    network: &net {name: resnet8, options: {width: 0.5}}
    stages: [{name: task, steps: 4, lr: {0: 0.1, 2: 0.01}, task: labels}]
  student:
    network: *net
    teacher: teacher
    labels: 100
    stages:
      - {name: transfer, steps: 4, lr: 0.01, transfer: {name: fsp, weight: 2}}
      - {name: task, steps: 4, lr: 0.05, task: labels, optimizer: {name: sgd, momentum: 0.9}}
ensembles: {both: {jobs: [teacher, student]}}
paper: {title: none, accuracy: {teacher: 12.34}}
"""
SHORT = """
name: short
data: {name: digits, batch: 32}
teacher: {network: resnet8, stages: [&task {name: task, steps: 100, lr: {0: 0.1, 50: 1e-2}, task: labels}]}
student: resnet8
stages:
  - {name: transfer, steps: 40, lr: 1e-3, transfer: attention}
  - *task
"""


NUMBERS = [None, True, False, 0, -1, 1, 1.5, -0.0, 10**30, -(10**400), 1e308, float("nan"), float("inf"), -float("inf")]
TEXTS = ["", " ", "x", "a/b", "../..", "/", ".", "~", "null", "=", "<<", "1e999", "2001-01-01"]
TEXTS += ["\x00", "\x1b[31m", "\u00e4\u202e\u00df\u2028", "\U0001f600", "x" * 10_000, "a b " * 3000]
TEXTS += [
    "digits",
    "resnet8",
    "resnet8x0",
    "resnet8x99999",
    "resnet999999999999",
    "timm:resnet18",
    "timm:",
    "torchvision:x",
]
TEXTS += [":", "f.py:g", "object:X", "fsp", "labels"]
GROUPS = [[], {}, [[]], [None], {"name": None}, {None: None}, {1: 2}, [1, "a", {}], {"name": "fsp", "x": 1}]
GROUPS += [list(range(3000)), {f"key{n}": n for n in range(300)}, {"x" * 10_000: 1}, {"linear": [1, float("nan")]}]


def values(rng: random.Random) -> Any:
    """A value that rarely fits where it is put."""
    deep: Any = []
    for _ in range(60):
        deep = [deep]
    return rng.choice([*NUMBERS, *TEXTS, *GROUPS, deep])


def paths(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in plain data, but the whole."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [whole for key, value in items for whole in [(*path, key), *paths(value, (*path, key))]]


def damaged(rng: random.Random, data: Any) -> Any:
    """A copy of plain data with one item deleted, replaced, renamed, repeated or moved."""
    data = copy.deepcopy(data)
    everywhere = paths(data)
    if not everywhere:
        return values(rng)
    *start, last = rng.choice(everywhere)
    container = data
    for part in start:
        container = container[part]
    kind = rng.choice(("delete", "replace", "replace", "rename", "add", "move", "wrap"))
    if kind == "delete":
        del container[last]
    elif kind == "rename" and isinstance(container, dict):
        container[rng.choice((f"{last}x", str(last)[1:], 5, None, True, 1.5, "x" * 10_000))] = container.pop(last)
    elif kind == "add" and isinstance(container, dict):
        container[rng.choice(("name", "stages", "teacher", "weights", "start", "uses", "<<", "x"))] = values(rng)
    elif kind == "move":
        *_, key = rng.choice(everywhere)
        container[last] = {key: container[last]}
    elif kind == "wrap":
        container[last] = [container[last]] if rng.random() < 0.5 else str(container[last])
    else:
        container[last] = values(rng)
    return data


def scratched(rng: random.Random, text: str) -> str:
    """The text with a few characters or lines damaged: tabs, cuts, doubled lines, anchors, aliases, merges."""
    at = rng.randrange(len(text) + 1)
    lines = text.splitlines(keepends=True)
    row = rng.randrange(len(lines) + 1)
    pieces = [
        "\t",
        "\x00",
        "\ufeff",
        "\n\n",
        "  ",
        "[" * 3000,
        *":-&*?|>'\"{}[],#!%@`",
        "&a",
        "*a",
        "*nobody",
        "<<: ",
        "---",
        "...",
    ]
    pieces += ["!!python/object:os.system ", "!!binary ", "!!int ", "!x "]
    kind: Callable[[], str] = rng.choice(
        (
            lambda: text[:at] + rng.choice(pieces) + text[at:],
            lambda: text[:at] + text[at + rng.randrange(1, 30) :],
            lambda: text[:at],
            lambda: "".join([*lines[:row], *lines[max(0, row - 1) : row], *lines[row:]]),
            lambda: "".join([*lines[:row], "  <<: *net\n", *lines[row:]]),
            lambda: "".join(rng.sample(lines, len(lines))),
            lambda: "".join([*lines[:row], "bomb: &b [" + ", ".join(["*b"] * 9) + "]\n", *lines[row:]]),
            lambda: text.replace(": ", ":", rng.randrange(1, 9)),
        )
    )
    return kind()


def recipe_texts() -> list[str]:
    """Recipes to start from: two tiny ones, many times, and every packaged one."""
    folders = [resources.files("flowstill.papers").joinpath(name) for name in ("tables", "studies")]
    files = sorted((file for folder in folders for file in folder.iterdir()), key=lambda file: file.name)
    return [TINY, SHORT] * 2 * len(files) + [file.read_text(encoding="utf-8") for file in files]


def mutant(rng: random.Random, texts: list[str]) -> tuple[str, list[str]]:
    """A damaged recipe and the arguments to check it with, damaged too at times."""
    text = rng.choice(texts)
    damages = rng.choice((1, 1, 1, 2, 3, 8)) if text in (TINY, SHORT) else rng.choice((3, 8))  # large ones take long
    if rng.random() < 0.7:
        data = yaml.safe_load(text)
        for _ in range(damages):
            data = damaged(rng, data)
        text = _written(data)
    else:
        for _ in range(damages):
            text = scratched(rng, text)
    return text, options(rng, text)


def options(rng: random.Random, text: str) -> list[str]:
    """Options for ``check``: mostly none."""
    given = []
    while rng.random() < 0.3:
        start = rng.choice(("data", "student", "teacher", "stages", "jobs", "uses", "name", "", "seed", "x" * 5000))
        more = [
            rng.choice(("stages", "0", "1", "transfer", "name", "network", "batch", "lr", "", "x", "-1", "options"))
        ]
        path = ".".join([start, *more * rng.randrange(3)])
        value = _written(values(rng)).strip()
        given += rng.choice(
            (
                ["--set", f"{path}={value}"],
                ["--set", f"{path}={value}"],
                ["--set", value],
                [f"--scale={value}"],
                [f"--seed={value}"],
                [f"--data-root={value}"],
            )
        )
    return given


def names(rng: random.Random) -> list[str]:
    """A command with a name, a folder or a size that hardly fits."""
    known = (
        "digits",
        "resnet8",
        "timm:resnet18",
        "fsp-table3",
        "nets.py:make",
        "runs/digits",
        "224x224",
        "mutant.yaml",
    )
    name = rng.choice([*TEXTS, *known, *(scratched(rng, text) for text in known)])
    command = rng.choice(("check {}", "inspect {}", "inspect resnet8 --against {}", "inspect resnet8 --image-size {}"))
    command = rng.choice(
        (command, "evaluate {}", "list {}", "check digits --data-root {}", "check digits --set data.name={}")
    )
    command = rng.choice((command, "reproduce {} --dry-run --rows x", "check digits --set teacher.weights={}", "{}"))
    return [part.replace("{}", name) for part in command.split()]


def _written(data: Any) -> str:
    return yaml.safe_dump(data, allow_unicode=True, sort_keys=False, width=10**9)
