"""Allocator settings do what they say, or nothing."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from circuits import memory
getattr(memory, {setting!r})()
for _ in range(4):
    torch.ones(40 << 20, dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(40 << 20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_kept_memory_is_not_mapped_anew() -> None:
    faults = {}
    for setting in ("keep_freed_memory", "return_freed_memory"):
        done = subprocess.run([sys.executable, "-c", PROGRAM.format(setting=setting)], capture_output=True, text=True,
                              check=True)
        faults[setting] = int(done.stdout)
    assert faults["keep_freed_memory"] < 0.3 * faults["return_freed_memory"]
