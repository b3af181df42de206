"""The table and the page: every number shown is in the run folder, and the page needs nothing else."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from flowstill.errors import RunError
from flowstill.reports import results, results_tables, table_text, write_report
from flowstill.runs import JobSummary, Run, RunWriter, Scores, Summary

STAGES = {"teacher": {"task": 40}, "alone": {"task": 40}, "student": {"transfer": 20, "task": 40}}
ACCURACY = {"teacher": 91.234, "alone": 86.5, "student": 88.75}


def recipe(**changes) -> dict:
    jobs = {
        name: {
            "network": {"name": "resnet26" if name == "teacher" else "resnet8", "options": {}},
            "stages": [{"name": stage, "steps": steps} for stage, steps in stages.items()],
            "teacher": "teacher" if name == "student" else None,
            "about": f"all about {name}",
        }
        for name, stages in STAGES.items()
    }
    return {
        "name": "small",
        "about": "a <b>small</b> & <script>alert(1)</script> run",
        "jobs": jobs,
        "seed": 3,
        "data": {"name": "cifar10", "batch": 256},
        "ensembles": {"both": {"jobs": ["alone", "student"]}},
        "paper": {"title": "A & B", "accuracy": {"teacher": 91.91, "student": 88.7}},
        **changes,
    }


def make_run(path: Path, done: tuple[str, ...] = tuple(STAGES), **changes) -> Run:
    writer = RunWriter.create(path)
    writer.write_recipe(yaml.safe_dump(recipe(**changes), sort_keys=False))
    for job in done:
        for stage, steps in STAGES[job].items():
            for step in range(5, steps + 1, 5):
                term = "fsp" if stage == "transfer" else "labels"
                writer.metrics.log(job, stage, step, {f"train/{term}": 2.0 / step, "lr": 0.1, "images_per_second": 9.0})
                if stage == "task" and step % 10 == 0:
                    writer.metrics.log(job, stage, step, {"test/accuracy": 50.0 + step / 2})
    writer.metrics.close()
    jobs = {
        job: JobSummary(
            accuracy=ACCURACY[job],
            parameters=366938 if job == "teacher" else 75290,
            macs=12_240_000,
            steps=sum(STAGES[job].values()),
            seconds=100.2,
            labels=200 if job == "student" else None,
        )
        for job in done
    }
    finished = len(done) == len(STAGES)
    writer.write_summary(
        Summary(
            finished=finished,
            jobs=jobs,
            ensembles={"both": Scores(accuracy=89.0)} if finished else {},
            device="cpu",
            seed=3,
            precision={"dtype": "bf16", "layout": "channels_last"},
            versions={"torch": "9.8.7"},
        )
    )
    return Run.open(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def html(run) -> str:
    return write_report(run).read_text(encoding="utf-8")


def table_rows(text: str) -> dict[str, dict[str, str]]:
    """job -> heading -> cell."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip(" ─")]
    return {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[1:] if len(cells) == len(lines[0])}


def test_the_table_shows_each_job_beside_the_paper_and_the_baseline(run):
    text = table_text(run)
    rows = table_rows(text)
    assert rows["teacher"] == {
        "job": "teacher",
        "network": "resnet26",
        "accuracy %": "91.23",
        "paper %": "91.91",
        "gain": "–",
        "labels": "all",
        "updates": "40",
        "parameters": "366,938",
        "MACs": "12.2M",
        "time": "1:40",
        "about": "all about teacher",
    }
    assert rows["student"]["gain"] == "+2.25"
    assert rows["student"]["labels"] == "200"
    assert rows["alone"]["paper %"] == "–"
    assert re.search(r"both .* 89\.00 .* \+2\.50 .* alone, student together", text)
    assert "percentage points over alone" in text
    assert "\x1b" not in text
    assert "…" not in text


def test_a_narrow_terminal_gets_a_table_that_fits(run):
    widths = [Console(width=500).measure(table).maximum for table in results_tables(run)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] <= 80
    for table in results_tables(run):
        assert [column.header for column in table.columns][:5] == ["job", "network", "accuracy %", "paper %", "gain"]


def test_columns_that_would_be_empty_are_left_out(tmp_path):
    jobs = {"net": recipe()["jobs"]["alone"]}
    text = table_text(make_run(tmp_path / "run", done=(), jobs=jobs, ensembles={}, paper=None))
    assert "paper" not in text
    assert "gain" not in text
    assert "–" in table_rows(text)["net"]["accuracy %"]


def test_an_unfinished_run_shows_what_is_done(tmp_path):
    rows = {row.name: row for row in results(make_run(tmp_path / "run", done=("teacher", "alone")))}
    assert list(rows) == ["teacher", "alone", "student", "both"]
    assert rows["alone"].accuracy == 86.5
    assert (rows["student"].accuracy, rows["student"].gain, rows["student"].network) == (None, None, "resnet8")


def test_the_baseline_is_never_a_teacher(tmp_path):
    jobs = recipe()["jobs"]
    jobs["alone"]["teacher"] = "teacher"
    run = make_run(tmp_path / "run", jobs=jobs)
    assert [row.gain for row in results(run)] == [None] * 4


class Page(HTMLParser):
    """What a browser would see: text by tag, every attribute, and whether all tags are closed in order."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"],):
            self.text.append(data)


def svgs(html: str) -> list[ET.Element]:
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def line_points(svg: ET.Element, colour: str) -> list[tuple[float, float]]:
    """The points of the curve in this colour, in the picture's units."""
    for path in svg.iter("{http://www.w3.org/2000/svg}path"):
        style = path.get("style", "")
        if f"stroke: {colour}" in style and "dasharray" not in style and "fill: none" in style:
            return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))]
    raise AssertionError(f"no curve in {colour}")


def test_the_page_is_self_contained(html):
    page = Page(html)
    assert page.open == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    for _, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data"):
            assert value.startswith("#")
    assert not re.search(r"url\((?!#)|@import", html)
    ids = [value for _, name, value in page.attributes if name == "id"]
    referred = re.findall(r'(?:url\(#|href="#)([^")]+)', html)
    assert set(referred) <= set(ids)


def test_the_page_matches_the_run_folder(run, html):
    text = " ".join(" ".join(Page(html).text).split())
    for expected in (
        "91.23",
        "88.75",
        "88.70",
        "+2.25",
        "366,938",
        "75,290",
        "A & B",
        "cifar10",
        "9.8.7",
        "bfloat16",
        "all about student",
        "student (resnet8), taught by teacher (resnet26), reaches 88.75 %",
        "2.25 points above alone",
        "4.9 times the parameters",
    ):
        assert expected in text
    assert "not finished" not in text
    assert "a <b>small</b> & <script>alert(1)</script> run" in text  # shown, not obeyed
    assert (run.path / "recipe.yaml").read_text() in "".join(Page(html).text)


def test_the_curves_match_the_measurements(html):
    accuracy, *losses = svgs(html)
    assert len(losses) == 4  # teacher, alone, and the student's two stages
    legend = re.findall(r'<li><span class="swatch" style="background:(#\w+)"></span>(\w+)</li>', html)
    curves = {name: line_points(accuracy, colour) for colour, name in legend if name in STAGES}
    assert set(curves) == set(STAGES)
    assert [len(points) for points in curves.values()] == [4, 4, 4]
    # Both measured at 10, 20, 30, 40 of the task; the student's task begins 20 updates later.
    step = curves["alone"][1][0] - curves["alone"][0][0]
    for (x, y), (later, same) in zip(curves["alone"], curves["student"], strict=True):
        assert later - x == pytest.approx(2 * step, abs=1e-3)
        assert same == pytest.approx(y, abs=1e-3)
    assert accuracy.get("aria-label", "").endswith("teacher, alone, student")


def test_the_losses_are_drawn_on_a_logarithmic_scale(html):
    teacher = svgs(html)[1]
    colour = re.search(r'background:(#\w+)"></span>labels', html)
    assert colour
    heights = {step: y for step, (_, y) in zip(range(5, 41, 5), line_points(teacher, colour[1]), strict=True)}
    # 2 / step: twice the step is half the loss, and that is the same distance everywhere.
    distances = [heights[2 * step] - heights[step] for step in (5, 10, 20)]
    assert distances == pytest.approx([distances[0]] * 3, abs=1e-2)
    assert distances[0] > 1


def test_a_run_without_measurements_has_a_page_too(tmp_path):
    run = make_run(tmp_path / "run", done=())
    (run.path / "summary.json").unlink()  # killed before the first was written
    html = write_report(run).read_text(encoding="utf-8")
    assert "not finished" in html
    assert svgs(html) == []
    assert Page(html).open == []


def test_the_same_run_gives_the_same_page(run, html):
    path = write_report(str(run.path))
    assert path == run.path / "report.html"
    assert path.read_text(encoding="utf-8") == html


def test_the_page_shows_the_run_as_it_is_now(tmp_path):
    run = make_run(tmp_path / "run", done=("teacher",))
    assert not run.finished
    assert "not finished" in write_report(run).read_text(encoding="utf-8")
    jobs = dict.fromkeys(run.jobs, run.summary.jobs["teacher"])
    done = replace(run.summary, jobs=jobs, ensembles={"both": Scores(accuracy=89.0)}, finished=True)
    RunWriter(run.path).write_summary(done)
    assert "not finished" not in write_report(run).read_text(encoding="utf-8")


def test_without_a_run_there_is_no_page(tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
