"""Folders locked against other processes."""

import signal
import subprocess
import sys
from pathlib import Path

from flowstill.files import alone_in
from flowstill.runs import RunWriter

HOLDER = """
import sys, time
from pathlib import Path
from flowstill.files import alone_in
with alone_in(Path(sys.argv[1])) as alone:
    print(alone, flush=True)
    time.sleep(600)
"""


def test_one_holder_at_a_time(tmp_path):
    with alone_in(tmp_path) as first:
        with alone_in(tmp_path) as second:
            assert (first, second) == (True, False)
        with alone_in(tmp_path) as third:
            assert not third  # the one that was refused did not release the lock
    with alone_in(tmp_path) as later:
        assert later


def test_a_lock_ends_with_its_process_and_leaves_the_folder_usable(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline() == "True\n"
        with alone_in(tmp_path) as alone:
            assert not alone
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with alone_in(tmp_path) as alone:
        assert alone
    RunWriter.create(tmp_path)  # the lock's file does not count as content
