"""The summary: typed in the package, by key for users, and readable whichever version wrote it."""

import json
import math

import pytest

from flowstill.errors import RunError
from flowstill.runs import JobSummary, Run, RunWriter, Scores, Summary

# As an earlier version wrote it, with a key that is gone.
OLD = {
    "recipe": "digits",
    "finished": True,
    "seed": 0,
    "device": "cpu",
    "devices": 1,
    "precision": {"dtype": "32", "layout": "contiguous"},
    "versions": {"torch": "2.9.0"},
    "jobs": {"student": {"accuracy": 97, "loss": math.nan, "labels": None, "teacher": "teacher", "mood": "good"}},
    "ensembles": {"both": {"accuracy": 98.5}},
    "command": "flowstill demo",
}


def test_a_summary_round_trips(tmp_path):
    job = JobSummary(accuracy=90.5, loss=math.inf, network="resnet8", labels=100, steps=4)
    summary = Summary(recipe="small", finished=True, seed=3, jobs={"student": job}, ensembles={"both": Scores(1.0)})
    RunWriter.create(tmp_path / "run").write_summary(summary)
    (tmp_path / "run" / "recipe.yaml").write_text("name: small")
    assert Run.open(tmp_path / "run").summary == summary


def test_a_summary_can_also_be_read_by_key():
    summary = Summary(jobs={"student": JobSummary(accuracy=90.5), "teacher": JobSummary()})
    assert summary["jobs"]["student"]["accuracy"] == 90.5
    assert summary["jobs"]["student"]["labels"] is None
    assert "accuracy" not in summary["jobs"]["teacher"]
    assert summary["jobs"]["teacher"].get("accuracy") is None
    assert dict(Scores(1.0, 2.0)) == {"accuracy": 1.0, "loss": 2.0}
    with pytest.raises(KeyError):
        _ = summary["to_json"]


def test_a_summary_from_an_earlier_version_is_read():
    summary = Summary.from_json(json.dumps(OLD))
    assert (summary.jobs["student"].accuracy, summary.jobs["student"].teacher) == (97.0, "teacher")
    assert math.isnan(summary.jobs["student"].loss)
    assert summary.jobs["student"].steps is None
    assert summary.ensembles["both"].accuracy == 98.5
    assert "mood" not in summary.to_json()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1"),
        ("[]", "dictionary"),
        ('{"jobs": 3}', "jobs: "),
        ('{"jobs": {"a": {"loss": "x"}}}', "a.loss.*'x'"),
    ],
)
def test_a_summary_edited_by_hand_says_where(text, said):
    with pytest.raises(RunError, match=f"'here' cannot be read: .*{said}"):
        Summary.from_json(text, "here")
