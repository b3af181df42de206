"""Run all benchmarks and print their table: ``python -m benchmarks``."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import HEADER, options

NONE = ("__init__", "__main__", "measure", "parts", "setting")


def main() -> None:
    begun, asked = time.perf_counter(), options()
    picked = f"{asked.precision.dtype},{asked.precision.layout}"  # once, so that all scripts have the same
    print(HEADER, flush=True)
    scripts = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in NONE)
    failed = []
    for script in scripts:  # a process each: none inherits another's threads or memory
        command = [sys.executable, "-m", f"benchmarks.{script}", *sys.argv[1:], "--precision", picked]
        if subprocess.run(command).returncode:
            failed.append(script)
    print(f"\n{time.perf_counter() - begun:.0f} s in all", file=sys.stderr)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
