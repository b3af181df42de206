"""The papers' figures, by the name in a recipe's ``figure``, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowstill.data import Data, open_data
from flowstill.data.spec import DISTORTED
from flowstill.errors import RecipeError
from flowstill.recipes.recipe import Recipe
from flowstill.reports.charts import COLOURS, stage_starts
from flowstill.runs import Run
from flowstill.transfer.recoding import penalty

SAMPLES, KERNELS = 8, 16
EPSILONS = (0.1, 0.25, 0.5, 1.0)  # thresholds of the penalty's curves; the paper gives none


def draw(recipe: Recipe, runs: Sequence[Run], folder: Path) -> list[Path]:
    """Draw the recipe's figure as ``figure.png`` and ``figure.svg``.

    Args:
        recipe: with a ``figure``.
        runs: of the recipe; the first one is drawn.
        folder: where the files go.

    Returns:
        The files.
    """
    assert recipe.figure is not None
    figure = _KINDS[recipe.figure](recipe, runs[0] if runs else None)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "figure.png", folder / "figure.svg"]
    import matplotlib

    for path in written:
        with matplotlib.rc_context({"svg.hashsalt": path.stem}):  # the same bytes for the same numbers
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return written


def penalty_curves(epsilon: float, reach: float = 2.0) -> tuple[list[float], list[float]]:
    """Phi_0 over [-reach, reach] for a fixed threshold: gradients and penalties.

    Example:
        >>> g, phi = penalty_curves(0.5, 1.0)
        >>> g[-1], phi[-1], phi[len(g) // 2]
        (1.0, 4.0, 0.0)
    """
    gradients = torch.linspace(-reach, reach, 801)
    return gradients.tolist(), penalty(gradients, epsilon).tolist()


def _penalty(recipe: Recipe, run: Run | None) -> Any:
    figure, (left, right) = _axes(1, 2, 8.0, 3.2)
    gradients, _ = penalty_curves(0.5)
    left.plot(gradients, [abs(g) for g in gradients], color=COLOURS[1], label="L1: |g|")
    left.plot(gradients, [g * g for g in gradients], color=COLOURS[2], label="L2: g²")
    left.plot(*penalty_curves(0.5), color=COLOURS[0], label="sparse recoding, ε = 0.5")
    for colour, epsilon in zip(COLOURS, EPSILONS, strict=False):
        right.plot(*penalty_curves(epsilon), color=colour, label=f"ε = {epsilon:g}")
    for axes in (left, right):
        axes.set_xlabel("gradient g")
        axes.set_ylim(-0.3, 12)
        axes.legend(frameon=False, fontsize=8)
    left.set_ylabel("penalty")
    return figure


def _samples(recipe: Recipe, run: Run | None) -> Any:
    if recipe.data.name not in DISTORTED:
        raise RecipeError(
            f"{recipe.name}: the figure 'samples' shows distorted images beside plain ones. Expected data "
            f"{' or '.join(DISTORTED)}. Received: {recipe.data.name!r}."
        )
    plain = Data(DISTORTED[recipe.data.name], root=recipe.data.root)
    sets = {spec.name: open_data(spec) for spec in (plain, recipe.data)}
    figure, grid = _axes(len(sets), SAMPLES, 1.1 * SAMPLES, 1.2 * len(sets) + 0.3)
    for row, (name, data) in zip(grid, sets.items(), strict=True):
        images, _ = next(iter(data.test_batches(batch=SAMPLES)))
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
        for axes, image in zip(row, images, strict=False):
            _picture(axes, (image * std + mean).clamp(0, 1))
        row[0].set_title(name, loc="left", fontsize=9)
    return figure


def _curves(recipe: Recipe, run: Run | None) -> Any:
    """Loss and accuracy over the updates on the task; updates before the task are not counted."""
    assert run is not None
    figure, (left, right) = _axes(1, 2, 8.4, 3.2)
    for axes, metric, label in ((left, "train/labels", "training loss"), (right, "test/accuracy", "test accuracy, %")):
        for colour, (job, (steps, values)) in zip(COLOURS * 3, task_curves(recipe, run, metric).items(), strict=False):
            axes.plot(steps, values, color=colour, linewidth=1.6, label=job)
        axes.set_xlabel("updates on the task")
        axes.set_ylabel(label)
    left.set_yscale("log")
    right.legend(frameon=False, fontsize=8)
    return figure


def task_curves(recipe: Recipe, run: Run, metric: str) -> dict[str, tuple[list[int], list[float]]]:
    """Collect a metric of each job over its updates on the task, across its stages.

    Args:
        recipe: the jobs to collect.
        run: the run that measured them.
        metric: such as ``test/accuracy``. Stages without it are not counted.

    Returns:
        Job -> updates and values.
    """
    found: dict[str, tuple[list[int], list[float]]] = {}
    rows = [row for row in run.metrics() if row.metric == metric and row.stage]
    for job in recipe.jobs:
        measured = [row for row in rows if row.job == job]
        if measured:
            starts: Mapping[str, int] = stage_starts(run.recipe, job)
            first = starts[measured[0].stage]
            steps = [starts[row.stage] - first + row.step for row in measured]
            found[job] = (steps, [row.value for row in measured])
    return found


def _kernels(recipe: Recipe, run: Run | None) -> Any:
    assert run is not None
    jobs = [job for job in recipe.jobs if job in run.jobs and job not in run.summary.failed]
    figure, grid = _axes(max(1, len(jobs)), KERNELS, 0.55 * KERNELS, 0.75 * len(jobs) + 0.3)
    for row, job in zip(grid if len(jobs) > 1 else [grid], jobs, strict=False):
        first = next(m for m in run.network(job).modules() if isinstance(m, nn.Conv2d)).weight.detach()
        low, high = first.min(), first.max()
        for axes, kernel in zip(row, first, strict=False):
            _picture(axes, (kernel - low) / (high - low))
        row[0].set_title(job, loc="left", fontsize=8)
    return figure


def _picture(axes: Any, image: torch.Tensor) -> None:
    axes.imshow(image.permute(1, 2, 0).numpy() if len(image) == 3 else image[0].numpy(), cmap="gray")
    axes.axis("off")


def _axes(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    return figure, grid if rows > 1 else grid[0]


_KINDS: dict[str, Callable[[Recipe, Run | None], Any]] = {
    "penalty": _penalty,
    "samples": _samples,
    "curves": _curves,
    "kernels": _kernels,
}
