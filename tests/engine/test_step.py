"""A step reads from top to bottom: few files take part in it, and a run leaves nothing open behind it."""

import sys
import threading
from pathlib import Path

import flowstill as fs
from flowstill.engine.step import Step
from support.engine_recipes import recipe

SOURCE = Path(fs.__file__).parent


def test_an_fsp_step_touches_at_most_ten_files(tmp_path, monkeypatch):
    """From the batch on: the teacher's reading, the targets, the losses, the gradients, the player's move."""
    plain, files = Step.__call__, set()

    def note(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and SOURCE in path.parents:
            files.add(str(path.relative_to(SOURCE)))

    def traced(self):
        if next(iter(self.students.values())).stage.name != "transfer" or self.number != 2:
            return plain(self)
        batch, feed = self.feed(self.number), self.feed
        self.feed = lambda number: batch
        sys.setprofile(note)
        try:
            plain(self)
        finally:
            sys.setprofile(None)
            self.feed = feed

    monkeypatch.setattr(Step, "__call__", traced)
    fs.train(recipe(steps=4), tmp_path / "run", device="cpu", precision="32", progress=False)
    assert "engine/step.py" in files
    assert "knowledge/fsp.py" in files
    assert len(files) <= 10, sorted(files)


def test_a_finished_run_leaves_no_thread_behind(tmp_path):
    before = set(threading.enumerate())
    fs.train(recipe(steps=2), tmp_path / "run", device="cpu", precision="32", progress=False)
    assert set(threading.enumerate()) <= before
