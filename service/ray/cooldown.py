"""Replicas that recently reported that they cannot serve; the router avoids them.

Per process. Not in `router`, which Ray pickles by value together with its module's state.
"""

from __future__ import annotations

import time

# A failed engine recovers within a second or two, if at all.
COOLDOWN_SECONDS = 2.0
# End of the cooldown by Ray's unique replica ID.
_until: dict[str, float] = {}


def start_cooldown(replica: str) -> None:
    """Sends nothing to this replica for COOLDOWN_SECONDS, if there is another."""
    now = time.monotonic()
    for known, until in list(_until.items()):  # The router may run in another thread.
        if until <= now:
            _until.pop(known, None)
    _until[replica] = now + COOLDOWN_SECONDS


def is_cooling_down(replica: str) -> bool:
    """Whether the router should avoid this replica for now."""
    return _until.get(replica, 0.0) > time.monotonic()
