"""Columns: other packages' columns appear in the table and on the page like the built-in ones."""

import re

import pytest
import yaml

import flowstill
from flowstill.errors import FlowstillError
from flowstill.reports import results_tables, table_text, write_report
from flowstill.reports.columns import COLUMNS
from flowstill.reports.results import Result
from flowstill.runs import JobSummary, Run, RunWriter, Summary

JOBS = {name: {"network": {"name": "resnet8"}, "stages": []} for name in ("small", "large")}


@pytest.fixture
def run(tmp_path) -> Run:
    writer = RunWriter.create(tmp_path / "run")
    writer.write_recipe(yaml.safe_dump({"name": "two", "jobs": JOBS}, sort_keys=False))
    done = {"small": JobSummary(accuracy=80.0, parameters=100), "large": JobSummary(accuracy=90.0, loss=0.5)}
    writer.write_summary(Summary(jobs=done, finished=True))
    return Run.open(tmp_path / "run")


def headings(run: Run) -> list[list[str]]:
    return [[str(column.header) for column in table.columns] for table in results_tables(run)]


def page_headings(html: str) -> list[str]:
    return re.findall(r'<th[^>]* scope="col">(.*?)</th>', html)


def test_the_built_in_columns_are_in_their_order(run):
    wide = ["job", "network", "accuracy %", "labels", "updates", "parameters", "MACs", "time", "about"]
    assert headings(run) == [wide, wide[:-1], ["job", "network", "accuracy %", "parameters"]]
    assert page_headings(write_report(run).read_text()) == wide[:-1]
    assert list(COLUMNS)[:5] == ["job", "network", "accuracy", "paper", "gain"]


def test_a_column_from_outside_is_shown_everywhere(run):
    @flowstill.register_column("loss", "test <loss>", width="narrow", css=lambda row: "mine" if row.loss else "")
    def loss(row):
        return None if row.loss is None else f"{row.loss:.3f}"

    @flowstill.register_column("remark", align="left", width="wide")
    def remark(row):
        return f"about {row.name}"

    assert [("test <loss>" in names, "remark" in names) for names in headings(run)] == [
        (True, True),
        (True, False),
        (True, False),
    ]
    small, large = (next(line for line in table_text(run).splitlines() if name in line) for name in JOBS)
    assert re.search(r"– +about small$", small)
    assert re.search(r"0\.500 +about large$", large)
    html = write_report(run).read_text()
    assert page_headings(html)[-2:] == ["test &lt;loss&gt;", "remark"]
    assert '<td class="mine">0.500</td>' in html
    assert '<td class="text">about large</td>' in html


def test_an_optional_column_without_values_is_left_out(run):
    flowstill.register_column("never", optional=True)(lambda row: None)
    flowstill.register_column("at times", optional=True)(lambda row: None if row.loss is None else "yes")
    assert "never" not in table_text(run)
    assert "at times" in table_text(run)
    assert "never" not in page_headings(write_report(run).read_text())


def test_a_taken_name_is_refused():
    with pytest.raises(FlowstillError, match=r"already a column 'gain', from flowstill\.reports\.columns"):
        flowstill.register_column("gain")(lambda row: "")


def test_a_column_of_a_file_that_the_recipe_uses_is_shown_if_its_code_may_run(run, tmp_path, caplog):
    file = tmp_path / "mine.py"
    file.write_text(
        'import flowstill as fs\n\n\n@fs.register_column("mine")\ndef mine(row):\n    return row.name.upper()\n'
    )
    RunWriter(run.path).write_recipe(yaml.safe_dump({**run.recipe, "uses": [str(file)]}, sort_keys=False))
    assert "SMALL" not in write_report(run).read_text()
    assert "The report leaves out what" in caplog.text
    assert "SMALL" in write_report(run, trust_code=True).read_text()
    caplog.clear()
    assert "SMALL" in write_report(run).read_text()  # it has run already
    file.unlink()
    write_report(run)
    assert "leaves out" in caplog.text


def test_a_diverged_job_has_a_gain_only_where_it_is_compared():
    gain = COLUMNS.find("gain")
    assert gain.cell(Result("student", teacher="teacher", missing="diverged")) in (None, "", "–")
    assert gain.cell(Result("student", teacher="teacher", missing="diverged", baseline="alone")) == "diverged"
