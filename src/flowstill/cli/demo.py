"""``flowstill demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run's folder.")] = Path("runs/digits"),
) -> None:
    """Teach a small network by a large one, on handwritten digits, in a few minutes on any machine.

    Run it again to go on after an interruption, or to see the table of the finished run.
    """
    from flowstill.cli.training import train_and_show
    from flowstill.recipes.load import load_recipe

    # float32, so that the numbers are the same whenever it is run on one machine; nothing would be gained at 8x8 pixels.
    train_and_show(load_recipe("digits"), out, resume=True, precision="32")
