"""``flowstill evaluate``."""

from __future__ import annotations

from flowstill.cli.console import plain_table, show_table
from flowstill.cli.options import DataRoot, Device, RunFolder, TrustCode


def evaluate(
    run: RunFolder, data_root: DataRoot = None, device: Device = "auto", trust_code: TrustCode = False
) -> None:
    """Measure a run's networks on the test images again."""
    from flowstill.api import evaluate as measure
    from flowstill.runs import Run

    scores = measure(Run.open(run), device=device, data_root=data_root, trust_code=trust_code)
    names = {"accuracy": "accuracy %", "top5": "top-5 %", "loss": "loss"}
    metrics = [metric for metric in names if any(metric in row for row in scores.values())]
    table = plain_table("job", *(names[m] for m in metrics))
    for job, row in scores.items():
        table.add_row(job, *(f"{row[m]:.{4 if m == 'loss' else 2}f}" for m in metrics))
    show_table(table)
