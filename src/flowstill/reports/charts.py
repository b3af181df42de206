"""Curves as inline SVG: text and grid inherit the colours of the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flowstill.runs import Measurement, Run

# Mid-tones that the colour-blind can tell apart, visible on white and on near black.
COLOURS = ("#3b82c4", "#d9771f", "#2f9e6e", "#b05fc4", "#d1495b", "#1f9aa8", "#98861a", "#7a7f87")
GREY = "#888c94"
ACCURACY = "test/accuracy"
Curve = tuple[list[float], list[float]]


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, the same in every chart and in the table."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def accuracy_chart(run: Run, metrics: Sequence[Measurement]) -> str:
    """Test accuracy over each job's updates, across its stages; an empty string if nothing was measured."""
    curves: dict[str, Curve] = {}
    starts = {job: stage_starts(run.recipe, job) for job in run.jobs}
    for row in metrics:
        if row.metric == ACCURACY:
            x, y = curves.setdefault(row.job, ([], []))
            x.append(starts[row.job].get(row.stage, 0) + row.step)
            y.append(row.value)
    if not curves:
        return ""
    figure, axes = _figure(7.6, 3.6)
    palette = colours(run.jobs)
    for job, (x, y) in curves.items():
        axes.plot(x, y, color=palette[job], linewidth=2, marker="o", markersize=3)
        for start in list(starts[job].values())[1:]:
            if start <= max(x):
                axes.axvline(start, color=palette[job], linewidth=1, linestyle=(0, (2, 3)), alpha=0.8)
    axes.set_xlabel("updates")
    axes.set_ylabel("test accuracy, %")
    axes.set_xlim(left=0)
    return _svg(figure, "accuracy", "Test accuracy in percent over updates: " + ", ".join(curves))


def loss_charts(run: Run, metrics: Sequence[Measurement]) -> list[dict[str, Any]]:
    """One chart for each trained stage: the losses of its terms on a logarithmic scale.

    Returns:
        Mappings with ``job``, ``stage``, ``svg`` and ``legend``, which is term -> colour.
    """
    stages: dict[tuple[str, str], dict[str, Curve]] = {}
    for row in metrics:
        kind, _, term = row.metric.partition("/")
        if kind == "train" and term:
            x, y = stages.setdefault((row.job, row.stage), {}).setdefault(term, ([], []))
            x.append(row.step)
            y.append(row.value)
    shown = {key: _terms(curves) for key, curves in stages.items()}
    palette = colours(list(dict.fromkeys(term for curves in shown.values() for term in curves)))
    return [_loss_chart(job, stage, curves, palette) for (job, stage), curves in shown.items()]


def _terms(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """The terms' curves, and their sum if there are several."""
    terms = {name: curve for name, curve in curves.items() if name != "loss"}
    return dict(curves) if len(terms) != 1 else terms


def _loss_chart(job: str, stage: str, curves: Mapping[str, Curve], palette: Mapping[str, str]) -> dict[str, Any]:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure, axes = _figure(3.9, 2.4)
    for name, (x, y) in curves.items():
        axes.plot(x, y, color=palette[name], linewidth=1.6)
    if any(value > 0 for _, y in curves.values() for value in y):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("updates of this stage")
    svg = _svg(figure, f"{job}/{stage}", f"Losses of {job} in stage {stage}: " + ", ".join(curves))
    return {"job": job, "stage": stage, "svg": svg, "legend": {name: palette[name] for name in curves}}


def stage_starts(recipe: Mapping[str, Any], job: str) -> dict[str, int]:
    """Stage -> number of the job's updates before it."""
    starts, total = {}, 0
    for stage in recipe["jobs"][job].get("stages") or ():
        starts[stage["name"]] = total
        total += stage["steps"]
    return starts


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A transparent figure, its size in inches, with plain axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(color=GREY, alpha=0.25, linewidth=0.8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)
    axes.tick_params(which="both", color=GREY, labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # updates are whole
    return figure, axes


def _svg(figure: Any, salt: str, label: str) -> str:
    """The figure as an ``<svg>`` element that scales with the page and has unique identifiers."""
    import matplotlib
    from markupsafe import escape

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-zA-Z0-9]+_\d+"', "", svg)  # group names that nothing refers to
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
