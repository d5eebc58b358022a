"""Fake CUDA devices in every process that finds this file on its PYTHONPATH and imports torch.

Python imports it before anything else. `FAKE_GPUS` is how many devices there are, or names a
file that says so to each process that starts: 0 are none. `FAKE_GPUS_LOST` may name a file that
lists, by their numbers, those that fail every call, as long as it says so.
With `FAULTS`, the engines fail on command as well: see `tests/faults/sitecustomize.py`.

What is launched is not judged: that takes a debugger's time. See `tests/support/fake_cuda.py`.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.import_hook import change_on_import

GPUS = os.environ["FAKE_GPUS"]
COUNT = int(GPUS if GPUS.isdecimal() else Path(GPUS).read_text())
LOST = os.environ.get("FAKE_GPUS_LOST")
# For the rest of the process.
forever = ExitStack()


def begin(torch: ModuleType) -> None:
    from tests.support.fake_cuda import fake_cuda

    fake = forever.enter_context(fake_cuda(COUNT, judge=False))
    if LOST is not None:
        listed = Path(LOST)

        def is_lost(device: int) -> bool:
            try:
                return str(device) in listed.read_text().split()
            except FileNotFoundError:
                return False

        fake.is_lost = is_lost


if COUNT:
    change_on_import(["torch"], begin)
if "FAULTS" in os.environ:
    import tests.faults.sitecustomize  # noqa: F401
