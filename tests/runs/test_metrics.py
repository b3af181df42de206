"""Measurements: kept exactly, even after a kill."""

import math
import sys
import threading
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowstill.errors import RunError
from flowstill.runs import MetricsLog, Run, RunWriter


def log_steps(log: MetricsLog, steps: range) -> None:
    for step in steps:
        log.log("student", "task", step, {"train/labels": 1 / step, "lr": 0.1})
        if step % 4 == 0:
            log.log("student", "task", step, {"test/accuracy": 10.0 * step})


def events(folder: Path, tag: str) -> list[tuple[int, float]]:
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(tag)]


def test_measurements_round_trip(tmp_path):
    log = MetricsLog(tmp_path)
    values = {"train/a": 0.1 + 0.2, "train/b": 1e-300, "train/c": math.inf}
    log.log("teacher", 'stage, "one"', 3, values)
    log.log("teacher", "two", 1, {"lr": math.nan})
    log.close()
    assert (tmp_path / "metrics.csv").read_text().startswith("job,stage,step,metric,value\n")
    rows = Run(tmp_path).metrics()
    assert [tuple(row) for row in rows[:3]] == [("teacher", 'stage, "one"', 3, m, v) for m, v in values.items()]
    assert math.isnan(rows[3].value)


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path):
    log = MetricsLog(tmp_path)
    log_steps(log, range(1, 4))
    log.close()
    path = tmp_path / "metrics.csv"
    whole = Run(tmp_path).metrics()
    path.write_bytes(path.read_bytes() + b"student,task,4,train/labels,0.2")
    assert Run(tmp_path).metrics() == whole
    path.write_bytes(path.read_bytes() + b"\nstudent,task,many,lr,0.1\n")
    with pytest.raises(RunError, match="job,stage,step,metric,value"):
        Run(tmp_path).metrics()


def test_truncation_restores_both_logs(tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    straight.mkdir()
    resumed.mkdir()
    log = MetricsLog(straight)
    log_steps(log, range(1, 21))
    log.close()

    log = MetricsLog(resumed)
    log_steps(log, range(1, 11))
    position = log.position()
    log_steps(log, range(11, 16))
    log.log("student", "later", 1, {"lr": 7.0})  # a stage begun after the state was saved
    log.flush()
    time.sleep(1.1)  # TensorBoard orders event files by the second in their names
    log = MetricsLog(resumed)  # the first is gone without being closed, as when killed
    log.truncate(position)
    log_steps(log, range(11, 17))
    log.close()
    log_steps(log, range(17, 21))  # opened again, it keeps what was logged since
    log.log("student", "later", 1, {"lr": 5.0})
    log.close()

    first, second = (straight / "metrics.csv").read_bytes(), (resumed / "metrics.csv").read_bytes()
    assert second == first + b"student,later,1,lr,5.0\n"
    for tag in ("train/labels", "test/accuracy"):
        shown = events(resumed / "tensorboard/student/task", tag)
        assert shown == events(straight / "tensorboard/student/task", tag)
        assert len(shown) == (20 if tag == "train/labels" else 5)
    assert events(resumed / "tensorboard/student/later", "lr") == [(1, 5.0)]


def test_truncating_to_nothing_and_beyond_the_end(tmp_path, caplog):
    log = MetricsLog(tmp_path)
    log.truncate(0)  # no file yet
    log_steps(log, range(1, 4))
    log.truncate(0)
    log_steps(log, range(1, 2))
    end = log.position()
    assert [row.step for row in Run(tmp_path).metrics()] == [1, 1]
    log.truncate(end)
    assert not caplog.messages
    log.truncate(end + 7)
    assert "its last 7 bytes are missing" in caplog.messages[0]
    assert [row.step for row in Run(tmp_path).metrics()] == [1, 1]


def test_no_thread_is_left_when_a_job_or_the_log_ends(tmp_path):
    before = threading.active_count()
    with MetricsLog(tmp_path) as log:
        for job in ("teacher", "student"):
            for stage in ("one", "two"):
                log.log(job, stage, 1, {"lr": 0.1})
        full = threading.active_count()
        log.end_job("teacher")
        assert before < threading.active_count() < full
        log.log("teacher", "two", 2, {"lr": 0.1})  # opens again
    assert threading.active_count() == before
    with pytest.raises(ZeroDivisionError), RunWriter(tmp_path) as writer:
        writer.metrics.log("teacher", "two", 3, {"lr": 1 / 0})
    with RunWriter(tmp_path) as writer:
        writer.metrics.log("teacher", "two", 3, {"lr": 0.1})
    assert threading.active_count() == before
    assert sorted(events(tmp_path / "tensorboard/teacher/two", "lr")) == [
        (1, pytest.approx(0.1)),
        *[(s, pytest.approx(0.1)) for s in (2, 3)],
    ]
    assert [row.step for row in Run(tmp_path).metrics() if row.job == "teacher"] == [1, 1, 2, 3]


def test_without_tensorboard_the_csv_file_is_all(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    log = MetricsLog(tmp_path)
    log.truncate(0)
    log_steps(log, range(1, 4))
    log.flush()
    log.close()
    assert [row.step for row in Run(tmp_path).metrics()] == [1, 1, 2, 2, 3, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    assert not caplog.messages


def test_events_that_cannot_be_continued_are_logged_once(tmp_path, monkeypatch, caplog):
    log = MetricsLog(tmp_path)
    log_steps(log, range(1, 4))
    position = log.position()
    log.close()
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    log = MetricsLog(tmp_path)
    log.truncate(position)
    log_steps(log, range(4, 7))
    log.close()
    (message,) = caplog.messages
    assert message.startswith(f"{str(tmp_path)!r} has TensorBoard events")
    assert "pip install 'flowstill[tensorboard]'" in message
    assert Run(tmp_path).metrics()[-1].step == 6
