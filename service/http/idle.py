"""Idle connections give way: what a service at its limit closes, so that others are served.

Connections may idle for an hour, so that a load balancer is the one to end them. At the limit most
connections then idle, and refusing a request for their sake would serve nobody. A server may close
an idle connection at any time (RFC 9112, section 9.6), and a client is to open another one; it
repeats by itself what is idempotent, or had not been sent (section 9.3.1). What can be lost is a
request that is on its way in that moment, so that the ones that idle longest are closed, and none
that has data to read.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from operator import itemgetter
from typing import Protocol

from service.logs import LogLimit, with_suppressed

log = logging.getLogger(__name__)
# A client in a pause between two requests is not idle yet.
LEAST_SECONDS = 5.0
# One in so many of the limit give way together: looking through all of them takes a millisecond.
SHARE = 100
# Until they are looked through again, if none could give way.
PAUSE_SECONDS = 0.1
# Between two log lines.
QUIET_SECONDS = 60.0


class IdleConnection(Protocol):
    @property
    def idle_since(self) -> float | None:
        """In the loop's time; None: it has a request, or has not had its first."""

    def give_way(self) -> bool:
        """Closes the connection and leaves the counted ones, unless a request has arrived."""


class Room:
    """Room for further connections at a limit."""

    def __init__(self) -> None:
        self._not_before = 0.0
        self._log_limit = LogLimit(QUIET_SECONDS)

    def has(self, connections: Collection[IdleConnection], limit: int, now: float) -> bool:
        """Whether one more may be open, perhaps because others give way; `now` is the loop's."""
        if len(connections) < limit:
            return True
        if now < self._not_before:
            return False
        idle = [
            (since, connection)
            for connection in connections
            if (since := connection.idle_since) is not None and since <= now - LEAST_SECONDS
        ]
        most, closed = max(1, limit // SHARE), 0
        for _, connection in sorted(idle, key=itemgetter(0)):
            closed += connection.give_way()
            if closed == most:
                break
        if not closed:
            self._not_before = now + PAUSE_SECONDS
            return False
        if (suppressed := self._log_limit.suppressed("")) is not None:
            log.info(
                "the limit of %d open connections is reached; closed the longest idle: %d%s",
                *(limit, closed, with_suppressed(suppressed)),
            )
        return True
