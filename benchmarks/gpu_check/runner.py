"""Runs one stage in this process: what it finds goes to stdout, a JSON object on each line.

`python -m benchmarks.gpu_check.runner STAGE OPTIONS UNTIL` is how `supervise` starts it. UNTIL is
when it will be killed, by `time.monotonic`, which is the same for all processes.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator

from benchmarks.gpu_check.stage import Figures, NotPossible, Options
from benchmarks.gpu_check.stages import STAGES

# Before a stage is killed, it writes where each of its threads is; in seconds.
EARLIER = 1.0


def findings(name: str, options: Options) -> Iterator[Figures]:
    """What the stage finds; one finding `skipped` if it cannot run here."""
    module = importlib.import_module(f"benchmarks.gpu_check.{STAGES[name].module}")
    find: Callable[[Options], Iterator[Figures]] = getattr(module, name)
    try:
        yield from find(options)
    except NotPossible as reason:
        yield {"skipped": str(reason)}


def main() -> None:
    name, options, until = sys.argv[1:]
    faulthandler.enable()
    left = float(until) - time.monotonic() - EARLIER
    faulthandler.dump_traceback_later(max(EARLIER, left))
    status = 0
    try:
        for found in findings(name, Options.from_json(options)):
            print(json.dumps(found), flush=True)
    # Any failure of a library is a finding, too.
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    # After some errors of a device, an orderly end would hang.
    os._exit(status)


if __name__ == "__main__":
    main()
