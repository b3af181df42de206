"""Run all benchmarks, print their table and write it into ``benchmarks/table.md``: ``python -m benchmarks``."""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.measure import HEADER, options

NONE = ("__init__", "__main__", "measure", "parts", "setting")
HERE = Path(__file__).parent


def machine(device: torch.device) -> str:
    """What the numbers were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return f"{torch.get_num_threads()} cores of {name}"


def main() -> None:
    begun, asked = time.perf_counter(), options()
    picked = f"{asked.precision.dtype},{asked.precision.layout}"  # once, so that all scripts have the same
    told = [
        f"{datetime.date.today()}, {machine(asked.device)}, torch {torch.__version__.partition('+')[0]}.",
        "",
        HEADER,
    ]
    print("\n".join(told), flush=True)
    failed = []
    for script in sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NONE):
        # A process each: none inherits another's threads or memory.
        command = [sys.executable, "-m", f"benchmarks.{script}", *sys.argv[1:], "--precision", picked]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
        print("\n".join(rows), flush=True)
        told += rows
        if done.returncode:
            failed.append(script)
    (HERE / "table.md").write_text("\n".join(told) + "\n", encoding="utf-8")
    print(f"\n{time.perf_counter() - begun:.0f} s in all", file=sys.stderr)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
