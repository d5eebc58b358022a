"""The recovery of an engine that failed: probes it, then builds another, for ever."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat

from service.engines import faults
from service.engines.status import EngineStatus
from service.engines.watchdog import Late

log = logging.getLogger(__name__)
# Before each probe of an engine that failed, and then before each attempt to build another.
PROBE_SECONDS = (0.0, 0.5, 1.0)
BUILD_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)
# Images that were accepted wait this long, in seconds, for an engine that failed.
PATIENCE_SECONDS = 5.0


@dataclass
class Recovery:
    """Attempts `probe` (None: there is no engine to probe) and `rebuild` until one succeeds.

    It calls `refuse` when patience ends: nobody shall wait for an engine that does not come back.
    """

    name: str
    status: EngineStatus
    probe: Callable[[], None] | None
    rebuild: Callable[[], None]
    refuse: Callable[[], None]

    def run(self, stopping: threading.Event) -> bool:
        """Whether the engine serves again; if not, it never will."""
        patience = threading.Timer(PATIENCE_SECONDS, self.refuse)
        patience.daemon = True
        patience.start()
        try:
            for seconds, attempt in self._attempts():
                if self.status.poisoned or stopping.wait(seconds):
                    self.refuse()
                    return False
                try:
                    attempt()
                except Late:
                    log.warning("%s: the call that hung has returned", self.name)
                except Exception as error:  # noqa: BLE001
                    log.warning("%s: still fails: %s", self.name, faults.in_one_line(error))
                    self.status.failed("the engine failed", error)
                else:
                    break
        finally:
            patience.cancel()
        return True

    def _attempts(self) -> Iterator[tuple[float, Callable[[], None]]]:
        """Seconds to wait, and what to try then; for ever."""
        if self.probe is not None:
            for seconds in PROBE_SECONDS:
                yield seconds, self.probe
        for seconds in chain(BUILD_SECONDS, repeat(BUILD_SECONDS[-1])):
            yield seconds, self.rebuild
