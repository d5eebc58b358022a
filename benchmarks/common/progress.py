"""Progress lines of long runs."""

from __future__ import annotations

import sys
import time


def say(step: str) -> None:
    """Prints a step and the time of day to stderr."""
    print(f"{time.strftime('%H:%M:%S')} {step}", file=sys.stderr, flush=True)
