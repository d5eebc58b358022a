"""The thread that drives a model's engine on one device."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service import interpreter
from service.batcher import Batcher, Job
from service.engines import Ranking, Warm
from service.errors import EngineFailed
from service.ranking import Row
from service.turns import Turns

State = Literal["loading", "ready", "failed"]
Pixels = NDArray[np.uint8]
Batch = list[Job[Pixels, Row]]

log = logging.getLogger(__name__)
RETRY_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0)


class Worker(threading.Thread):
    """Starts its engine, then computes batches until the batcher is closed.

    `build` gives the first engine; each of `improve` one that replaces it between two batches,
    as soon as it is warm. `turns` are those of the device, `share` this model's of its time.
    After a failure it is ready again only when a real forward has succeeded. `reason` says why
    it is not ready; the callbacks are called from this thread.
    """

    def __init__(
        self,
        name: str,
        batcher: Batcher[Pixels, Row],
        build: Callable[[], Warm],
        *,
        improve: Sequence[Callable[[], Warm]] = (),
        turns: Turns,
        share: float = 1.0,
        on_ready: Callable[[Warm], None],
        on_batch: Callable[[int], None],
        on_error: Callable[[], None],
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.state: State = "loading"
        self.reason = "the engine is warming up"
        self.running: Warm | None = None
        self._batcher = batcher
        self._build: Callable[[], Warm] | None = build
        self._improve: Sequence[Callable[[], Warm]] = improve
        self._better: Warm | None = None
        self._turns = turns
        self._share = share
        self._on_ready = on_ready
        self._on_batch = on_batch
        self._on_error = on_error
        self._stopping = threading.Event()

    def run(self) -> None:
        assert self._build is not None
        started = time.perf_counter()
        try:
            warm = self._build()
        # An engine may fail in any way its libraries fail; the service stays up to say so.
        except Exception as error:
            self.state, self.reason = "failed", f"the engine did not start: {error}"
            log.exception("%s: the engine did not start", self.name)
            self._on_error()
            return
        self._build = None  # It holds the weights as they were read.
        self._serve_with(warm, time.perf_counter() - started)
        if self._improve and not self._stopping.is_set():
            name = f"{self.name}/improve"
            threading.Thread(target=self._find_better, name=name, daemon=True).start()
        while self._batcher.wait(warm.buckets.largest):
            if self._better is not None:
                warm, self._better = self._better, None
                self._serve_with(warm, 0.0)
            self._turn(warm)
        self._turns.forget(self)

    def _serve_with(self, warm: Warm, seconds: float) -> None:
        self.running = warm
        interpreter.settle()
        self._on_ready(warm)
        self.state, self.reason = "ready", ""
        engine, parity = warm.engine, warm.parity
        log.info(
            "%s: ready with %s in %s on %s after %.1f s; batches of %s; "
            "top-1 as fp32 for %.0f %% of %d images, probabilities within %.2g",
            self.name,
            engine.name,
            engine.precision,
            engine.device,
            seconds,
            ", ".join(map(str, warm.buckets.seconds)),
            parity.top1_agreement * 100,
            parity.images,
            parity.max_difference,
        )

    def _find_better(self) -> None:
        for build in self._improve:
            try:
                self._better = build()
            # What serves goes on serving.
            except Exception as error:  # noqa: BLE001
                log.warning("%s: stays with its engine: %s", self.name, error)
        self._improve = ()

    def _turn(self, warm: Warm) -> None:
        """Computes while work waits; one batch if the engine has one in flight, or others wait."""
        engine = warm.engine
        batches: deque[Batch] = deque()
        results: deque[Callable[[], Ranking]] = deque()
        failure: Exception | None = None
        self._turns.acquire(self)
        began, going_on = time.perf_counter(), True
        try:
            while going_on or batches:
                batch = self._batcher.take(warm.buckets.take) if going_on else []
                if batch:
                    self._on_batch(len(batch))
                    batches.append(batch)
                    images = [job.payload for job in batch if job.payload is not None]
                    results.append(warm.launch(images))
                must_end = engine.in_flight == 1 or self._turns.contended or self._better
                going_on = bool(batch) and not must_end
                if batches and (not going_on or len(batches) == engine.in_flight):
                    ranking = results.popleft()()
                    if not np.isfinite(ranking.probabilities).all():
                        raise ArithmeticError("the network gave NaN")  # noqa: TRY301
                    self._batcher.finish(batches.popleft(), ranking.rows())
        except Exception as error:
            log.exception("%s: a batch failed", self.name)
            failure = error
        finally:
            self._turns.release(self, time.perf_counter() - began, self._share)
        if failure is not None:
            self._fail(batches, failure)
            self._recover(warm)

    def _fail(self, batches: Iterable[Batch], error: Exception) -> None:
        self._on_error()
        self.state, self.reason = "failed", f"the engine failed: {error}"
        message = "the engine failed while computing this image; retry"
        for batch in batches:
            self._batcher.fail(batch, EngineFailed(message, retry_after=1.0))

    def _recover(self, warm: Warm) -> None:
        attempt = 0
        while not self._stopping.wait(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]):
            attempt += 1
            try:
                warm.probe()
            except Exception as error:  # noqa: BLE001
                self.reason = f"the engine failed: {error}"
                continue
            self.state, self.reason = "ready", ""
            log.info("%s: the engine works again", self.name)
            return

    def stop(self) -> None:
        """Ends a recovery; the batcher's closing ends the rest."""
        self._stopping.set()
