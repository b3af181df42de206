"""Memory that is freed and taken again costs no new pages."""

import resource
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from flowstill.engine.memory import keep_freed_memory
if KEEP:
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(4_000_000)
before = faults()
for _ in range(20):
    torch.ones(4_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is another")
def test_the_next_tensor_takes_the_pages_of_the_last():
    """20 tensors of 16 MB: some 4 000 pages each where the system clears them anew."""
    counts = {}
    for keep in (False, True):
        done = subprocess.run([sys.executable, "-c", CODE.replace("KEEP", str(keep))], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        counts[keep] = int(done.stdout)
    pages = 16_000_000 // resource.getpagesize()
    assert counts[True] < pages
    assert counts[True] <= counts[False]
