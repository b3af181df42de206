"""``flowstill demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(metavar="RUN", help="Run folder.")] = Path("runs/digits"),
) -> None:
    """Teach a small network with a large one, on handwritten digits, in a few minutes on any machine.

    Run it again to continue after an interruption, or to see the results again.
    """
    from flowstill.cli.training import train_and_show
    from flowstill.recipes.load import load_recipe

    # float32 gives the same numbers each time on one machine; other formats are no faster at 8x8 pixels.
    train_and_show(load_recipe("digits"), out, resume=True, precision="32")
