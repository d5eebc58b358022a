"""What a process frees, it keeps."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from models.training import memory
if sys.argv[1] == "keep":
    memory.keep_freed()
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    torch.zeros(64 << 20, dtype=torch.uint8)
step(); step()
before = faults()
for _ in range(4):
    step()
print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_pages_are_taken_from_the_system_once() -> None:
    def faults(how: str) -> int:
        # Training in this process may have set what torch reads.
        return int(
            subprocess.check_output(
                [sys.executable, "-c", PROGRAM, how], text=True, env=dict(os.environ)
            )
        )

    pages = 4 * (64 << 20) // 4096
    assert faults("give back") > 0.5 * pages, "as it is without"
    # A system short of memory takes some back: not every time.
    assert any(faults("keep") < 0.01 * pages for _ in range(3))
