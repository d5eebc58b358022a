"""What the metrics say, read beside the event loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio.to_thread

from service.metrics import Metrics

# After each reading, ten times as long as it took, but no longer than this.
PAUSE_SECONDS = 1.0


class Exposition:
    """Reads the metrics in a thread, one reading at a time, with pauses.

    With many models a reading takes long, and any client may ask. Those that ask before a reading
    begins share it, so each sees everything that was counted before it asked.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lock = asyncio.Lock()
        self._rest_until = 0.0
        self._latest: dict[str, tuple[float, Any]] = {}  # when it began, and what it read

    async def text(self, *, openmetrics: bool) -> bytes:
        """See `Metrics.render`."""
        read = partial(self._metrics.render, openmetrics=openmetrics)
        content: bytes = await self._shared("openmetrics" if openmetrics else "text", read)
        return content

    async def counted(self) -> dict[str, dict[str, float]]:
        """See `Metrics.counted`."""
        samples: dict[str, dict[str, float]] = await self._shared("counted", self._metrics.counted)
        return samples

    async def _shared(self, kind: str, read: Callable[[], Any]) -> Any:
        asked = time.monotonic()
        async with self._lock:
            began, content = self._latest.get(kind, (-math.inf, None))
            if began < asked:
                await asyncio.sleep(max(0.0, self._rest_until - time.monotonic()))
                began = time.monotonic()
                content = await anyio.to_thread.run_sync(read)
                ended = time.monotonic()
                self._rest_until = ended + min(PAUSE_SECONDS, 10 * (ended - began))
                self._latest[kind] = began, content
            return content
