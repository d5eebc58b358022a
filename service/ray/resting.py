"""Replicas that have just said that they cannot serve; all else is asked first.

Of this process. Not in `router`, which Ray copies by value together with what its module holds.
"""

from __future__ import annotations

import time

# Then it is asked again: an engine that failed comes back within a second or two, if it does.
REST_SECONDS = 2.0
# Ray's unique ID of a replica, and until when it rests.
_until: dict[str, float] = {}


def rest(replica: str) -> None:
    """Sends nothing to this replica for REST_SECONDS, if there is another."""
    now = time.monotonic()
    for known, until in list(_until.items()):  # The router's thread may be another one.
        if until <= now:
            _until.pop(known, None)
    _until[replica] = now + REST_SECONDS


def rests(replica: str) -> bool:
    """Whether this replica is not to be sent anything just now."""
    return _until.get(replica, 0.0) > time.monotonic()
