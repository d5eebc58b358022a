"""The thread that drives one engine."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.batcher import Batcher, Job
from service.engines import Engine
from service.errors import EngineFailed

State = Literal["loading", "ready", "failed"]
Pixels = NDArray[np.uint8]
Row = NDArray[np.float32]

log = logging.getLogger(__name__)
RETRY_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0)


class Worker(threading.Thread):
    """Builds and warms its engine, then computes batches until the batcher is closed.

    After a failure it is ready again only when a real forward has succeeded. `reason` says why
    it is not ready; the callbacks are called from this thread.
    """

    def __init__(
        self,
        name: str,
        batcher: Batcher[Pixels, Row],
        build: Callable[[], Engine],
        max_batch: int,
        *,
        on_ready: Callable[[Engine], None],
        on_batch: Callable[[int], None],
        on_error: Callable[[], None],
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.state: State = "loading"
        self.reason = "the engine is warming up"
        self.engine: Engine | None = None
        self._batcher = batcher
        self._build: Callable[[], Engine] | None = build
        self._max_batch = max_batch
        self._on_ready = on_ready
        self._on_batch = on_batch
        self._on_error = on_error
        self._stopping = threading.Event()

    def run(self) -> None:
        assert self._build is not None
        started = time.perf_counter()
        try:
            engine = self._build()
            engine.warm_up()
        # An engine may fail in any way its libraries fail; the service stays up to say so.
        except Exception as error:
            self.state, self.reason = "failed", f"the engine did not start: {error}"
            log.exception("%s: the engine did not start", self.name)
            self._on_error()
            return
        self._build = None  # It holds the weights as they were read.
        self.engine = engine
        self._on_ready(engine)
        self.state, self.reason = "ready", ""
        seconds = time.perf_counter() - started
        log.info(
            "%s: ready on %s (%s, %s) in %.1f s",
            self.name,
            engine.device,
            engine.name,
            engine.precision,
            seconds,
        )
        while batch := self._batcher.next_batch(self._max_batch):
            self._compute(engine, batch)

    def _compute(self, engine: Engine, batch: list[Job[Pixels, Row]]) -> None:
        self._on_batch(len(batch))
        images = [job.payload for job in batch if job.payload is not None]
        try:
            rows = engine.infer(images)
            if not np.isfinite(rows).all():
                raise ArithmeticError("the network gave NaN")  # noqa: TRY301
        except Exception as error:
            log.exception("%s: a batch of %d failed", self.name, len(batch))
            self._on_error()
            self.state, self.reason = "failed", f"the engine failed: {error}"
            message = "the engine failed while computing this image; retry"
            self._batcher.fail(batch, EngineFailed(message, retry_after=1.0))
            self._recover(engine, np.zeros_like(images[0]))
        else:
            self._batcher.finish(batch, list(rows))

    def _recover(self, engine: Engine, probe: Any) -> None:
        attempt = 0
        while not self._stopping.wait(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]):
            attempt += 1
            try:
                engine.infer([probe])
            except Exception as error:  # noqa: BLE001
                self.reason = f"the engine failed: {error}"
                continue
            self.state, self.reason = "ready", ""
            log.info("%s: the engine works again", self.name)
            return

    def stop(self) -> None:
        """Ends a recovery; the batcher's closing ends the rest."""
        self._stopping.set()
