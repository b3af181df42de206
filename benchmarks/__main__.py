"""Run all benchmarks and print their table: ``python -m benchmarks``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> None:
    print("| what | shapes | reference | ours | reference / ours |\n|---|---|---|---|---|", flush=True)
    scripts = sorted(
        p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__init__", "__main__", "measure")
    )
    for script in scripts:  # a process each: none inherits another's threads or memory
        subprocess.run([sys.executable, "-m", f"benchmarks.{script}"], check=True)


if __name__ == "__main__":
    main()
