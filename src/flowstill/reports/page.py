"""One self-contained HTML page about a run."""

from __future__ import annotations

from pathlib import Path

from flowstill.files import atomic_write
from flowstill.reports import text
from flowstill.reports.charts import ACCURACY, accuracy_chart, colours, loss_charts
from flowstill.reports.results import baseline, results, verdict
from flowstill.runs import Run

NAME = "report.html"


def write_report(run: Run | str | Path) -> Path:
    """Write ``report.html`` into the run folder and return its path; an unfinished run gives a report so far.

    The page holds all that it shows: no script, no font and no picture is fetched.
    Raises: RunError if it is no run folder.
    """
    run = Run.open(run.path if isinstance(run, Run) else run)  # read anew: the run may have gone on since it was opened
    path = run.path / NAME
    atomic_write(path, render(run).encode())
    return path


def render(run: Run) -> str:
    """The page as HTML text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("flowstill", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(text, name) for name in ("count", "short", "percent", "points", "duration")}
    metrics = run.metrics()
    losses = [{**chart, "svg": Markup(chart["svg"])} for chart in loss_charts(run, metrics)]
    palette = colours(run.jobs)
    measured = {job: palette[job] for job in run.jobs if any(m.job == job and m.metric == ACCURACY for m in metrics)}
    return environment.get_template(NAME).render(
        recipe=run.recipe,
        summary=run.summary,
        finished=run.finished,
        facts=_facts(run),
        verdict=verdict(run),
        rows=results(run),
        baseline=baseline(run),
        colours=palette,
        measured=measured,
        accuracy=Markup(accuracy_chart(run, metrics)),
        losses=losses,
        recipe_text=(run.path / "recipe.yaml").read_text(encoding="utf-8"),
    )


def _facts(run: Run) -> list[tuple[str, str]]:
    """What else tells one run from another: data, device, number format, seed, time."""
    summary, data = run.summary, run.recipe.get("data") or {}
    seconds = [job["seconds"] for job in summary.get("jobs", {}).values() if "seconds" in job]
    precision = summary.get("precision") or {}
    formats = {"32": "float32", "bf16": "bfloat16"}, {"channels_last": "channels last", "contiguous": "channels first"}
    precise = [names.get(precision.get(key, ""), "") for key, names in zip(("dtype", "layout"), formats, strict=True)]
    facts = {
        "Data": data.get("name"),
        "Batch": data.get("batch"),
        "Device": summary.get("device"),
        "Precision": ", ".join(filter(None, precise)),
        "Seed": summary.get("seed", run.recipe.get("seed")),
        "Time": text.duration(sum(seconds)) if seconds else None,
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]
