"""One self-contained HTML page about a run."""

from __future__ import annotations

import logging
from pathlib import Path

from flowstill.errors import RecipeError
from flowstill.files import atomic_write
from flowstill.reports import text
from flowstill.reports.charts import ACCURACY, accuracy_chart, colours, loss_charts
from flowstill.reports.columns import shown_columns
from flowstill.reports.results import gain_over, results, verdict
from flowstill.reports.snippet import IMPORTS, snippet
from flowstill.runs import Run
from flowstill.runs.kept import check_files
from flowstill.schema.code import import_code, was_run

NAME = "report.html"
_log = logging.getLogger("flowstill")


def write_report(run: Run | str | Path, *, trust_code: bool = False) -> Path:
    """Write ``report.html`` into the run folder; an unfinished run gives a report of the results so far.

    The page is self-contained: it fetches no script, font or picture.

    Args:
        run: a run or its folder, which is read again.
        trust_code: run the Python files that the recipe ``uses``, which may add columns; without it, and if they were not
            run before, their columns are left out, with a warning.

    Returns:
        The path of the page.

    Raises:
        RunError: not a run folder, or a file in it cannot be read or was damaged.
    """
    run = Run.open(run.path if isinstance(run, Run) else run)  # it may have progressed since it was opened
    check_files(run)
    _import_used(run, trust_code)
    path = run.path / NAME
    atomic_write(path, render(run).encode())
    return path


def _import_used(run: Run, trust_code: bool) -> None:
    """Let what the recipe uses add its columns."""
    for name in run.recipe.get("uses") or ():
        try:
            import_code(name, trust_code=trust_code or was_run(name))
        except RecipeError as error:
            _log.warning("The report leaves out what %r would add: %s", name, error)


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
    metrics = [row for row in run.metrics() if row.job in run.jobs]  # a job may have left the recipe since
    losses = [{**chart, "svg": Markup(chart["svg"])} for chart in loss_charts(run, metrics)]
    palette = colours(run.jobs)
    rows = results(run)
    columns = shown_columns(rows)
    columns.pop("about")  # shown below the job's name
    measured = {job: palette[job] for job in run.jobs if any(m.job == job and m.metric == ACCURACY for m in metrics)}
    return environment.get_template(NAME).render(
        recipe=run.recipe,
        summary=run.summary,
        finished=run.finished,
        facts=_facts(run),
        verdict=verdict(run),
        rows=rows,
        columns=list(columns.values()),
        gain_over=gain_over(rows) if "gain" in columns else None,
        paper=run.recipe["paper"]["title"] if "paper" in columns else None,
        colours=palette,
        measured=measured,
        accuracy=Markup(accuracy_chart(run, metrics)),
        losses=losses,
        imports=IMPORTS,
        snippet=snippet(run),
        path=str(run.path),
        recipe_text=(run.path / "recipe.yaml").read_text(encoding="utf-8"),
    )


def _facts(run: Run) -> list[tuple[str, str]]:
    """Data, batch size, device, precision, seed and time, as far as they are known."""
    summary, data = run.summary, run.recipe.get("data") or {}
    seconds = [job.seconds for job in summary.jobs.values() if job.seconds is not None]
    dtype = {"32": "float32", "bf16": "bfloat16"}.get(summary.precision.get("dtype", ""), "")
    layouts = {"channels_last": "channels last", "contiguous": "channels first"}
    layout = layouts.get(summary.precision.get("layout", ""), "")
    needed = ", ".join((run.recipe.get("run") or {}).get("float32_for", ()))
    facts = {
        "Data": data.get("name"),
        "Batch size": data.get("batch"),
        "Device": summary.device,
        "Precision": ", ".join(filter(None, (dtype, layout, needed and f"as {needed} needs float32"))),
        "Seed": run.recipe.get("seed") if summary.seed is None else summary.seed,
        "Time": text.duration(sum(seconds)) if seconds else None,
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]
