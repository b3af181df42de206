"""``flowstill --help`` imports nothing that is slow: the whole command, against a bare interpreter's start."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.measure import interleaved, milliseconds, options

MOST = 0.5  # seconds


def main() -> None:
    asked = options()

    def run(*command: str) -> None:
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)

    ways = {"bare": lambda: run("-c", "pass"), "ours": lambda: run("-m", "flowstill", "--help")}
    bare, ours = interleaved(ways, 5, asked).values()
    print(
        f"| `flowstill --help` | - | python: {milliseconds(bare)} | {milliseconds(ours)} | - "
        f"| under {MOST:g} s | {'yes' if ours < MOST else '**no**'} |"
    )


if __name__ == "__main__":
    main()
