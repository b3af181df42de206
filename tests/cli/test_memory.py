"""Memory that is freed and allocated again needs no new pages."""

import resource
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from flowstill.cli.memory import keep_freed_memory
assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    return len([torch.ones(2_000_000) for _ in range(12)])
for _ in range(5):
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is another")
def test_the_next_tensor_reuses_the_pages_of_the_last():
    """Ten steps that each make and drop 12 tensors of 8 MB: some 2 000 pages each where the system clears them anew, as
    it does without the call in most processes, though not in all."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 10 * 12 * 8_000_000 // resource.getpagesize() // 4
