"""The thread that drives a model's engine on one device."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, repeat
from typing import Literal, NoReturn

import numpy as np

from service import runtime
from service.engines import faults
from service.engines.device_share import DeviceShare
from service.engines.engine import Warm
from service.engines.watchdog import Late, Watchdog
from service.errors import EngineFailed
from service.inference.batcher import Batcher, Job
from service.inference.ranking import Ranking, Row
from service.inference.tasks import Classify, Pixels

# "lost": only another process can serve again, or one hung call that comes back after all.
State = Literal["loading", "ready", "failed", "lost"]
Batch = list[Job[Pixels, Row]]

log = logging.getLogger(__name__)
# Before each probe of an engine that failed, and then before each attempt to build another.
PROBE_SECONDS = (0.0, 0.5, 1.0)
BUILD_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)
# Images that were accepted wait this long, in seconds, for an engine that failed.
PATIENCE_SECONDS = 5.0
# A call hangs if it takes so many times what it was measured to take, and `timeout` as well.
SLOWER = 20


class Worker(threading.Thread):
    """Starts its engine, then computes batches until the batcher is closed.

    `build` gives the first engine; each of `improve` one that replaces it between two batches,
    as soon as it is warm; `rebuild` one of the kind that has failed (None: whichever is first),
    without having held its weights until then. `turns` are those of the device, `share` this
    model's of its time; `timeout`, in seconds, is when a call is taken to hang.

    Jobs of a batch that failed are computed once more. After a failure it is ready again only when
    a real forward has succeeded. `reason` says why it is not ready; `serves` whether any engine of
    the queue is. The callbacks are called from this thread, or from its watchdog's.
    """

    def __init__(
        self,
        name: str,
        batcher: Batcher[Pixels, Row],
        build: Callable[[], Warm],
        *,
        rebuild: Callable[[str | None], Warm],
        improve: Sequence[Callable[[], Warm]] = (),
        turns: DeviceShare,
        share: float = 1.0,
        timeout: float,
        serves: Callable[[], bool],
        on_ready: Callable[[Warm], None],
        on_batch: Callable[[int, float], None],
        on_error: Callable[[], None],
        on_out_of_memory: Callable[[], None],
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.state: State = "loading"
        self.reason = "the engine is warming up"
        self.running: Warm | None = None
        self._batcher = batcher
        self._build: Callable[[], Warm] | None = build
        self._rebuild = rebuild
        self._improve: Sequence[Callable[[], Warm]] = improve
        self._better: Warm | None = None
        self._turns = turns
        self._share = share
        self._timeout = timeout
        self._serves = serves
        self._on_ready = on_ready
        self._on_batch = on_batch
        self._on_error = on_error
        self._on_out_of_memory = on_out_of_memory
        self._stopping = threading.Event()
        self._watchdog = Watchdog(name, self._give_up)
        # Of the present turn: batches that compute, those too large for the memory, and the jobs
        # that are to be computed again.
        self._flying: deque[Batch] = deque()
        self._too_large: list[Batch] = []
        self._failed: Batch = []
        self._largest = 0
        self._poisoned = False

    def run(self) -> None:
        self._watchdog.start()
        serves = self._start_engine() or self._recover()
        if serves and self._improve and not self._stopping.is_set():
            name = f"{self.name}/improve"
            threading.Thread(target=self._find_better, name=name, daemon=True).start()
        while serves and self.running and self._batcher.wait(self.running.buckets.largest):
            if self._better is not None:
                self._serve_with(self._better, 0.0)
                self._better = None
            serves = self._turn(self.running) or self._recover()
        # What is frozen against garbage collection must not be left in a circle.
        self._watchdog.stop()
        self._turns.forget(self)
        self.running = self._better = None

    def _start_engine(self) -> bool:
        assert self._build is not None
        started = time.perf_counter()
        try:
            warm = self._build()
        # An engine may fail in any way its libraries fail; the service stays up to say so.
        except Exception as error:
            log.exception("%s: the engine did not start", self.name)
            self._on_error()
            self._fail("the engine did not start", error)
        else:
            self._serve_with(warm, time.perf_counter() - started)
        self._build = None  # It holds the weights as they were read.
        return self.state == "ready"

    def _serve_with(self, warm: Warm, seconds: float) -> None:
        self.running = warm
        runtime.settle_memory()
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
        if engine.tuning is not None:
            log.info("%s: computes with %s", self.name, engine.tuning)
        self._on_ready(warm)
        self._be_ready()

    def _be_ready(self) -> None:
        self.state, self.reason = "ready", ""
        self._batcher.resume()

    def _find_better(self) -> None:
        for build in self._improve:
            try:
                self._better = build()
            # What serves goes on serving.
            except Exception as error:  # noqa: BLE001
                log.warning("%s: stays with its engine: %s", self.name, error)
        self._improve = ()

    def _turn(self, warm: Warm) -> bool:
        """Computes while work waits; one batch if the engine has one in flight, or others wait.

        Whether the engine is as sound as before.
        """
        results: deque[Callable[[], Ranking]] = deque()
        late = False
        self._turns.acquire(self)
        began, going_on = time.perf_counter(), True
        try:
            while going_on or self._flying:
                batch = self._batcher.take(warm.buckets.take) if going_on else []
                if batch:
                    self._flying.append(batch)
                    results.append(self._launch(warm, batch))
                must_end = warm.engine.in_flight == 1 or self._turns.contended or self._better
                going_on = bool(batch) and not must_end
                if self._flying and (not going_on or len(self._flying) == warm.engine.in_flight):
                    if not self._collect(self._flying[0], results.popleft()):
                        self._too_large.append(self._flying[0])
                    self._flying.popleft()
                    going_on = going_on and not self._too_large and not self._failed
            if self._too_large:
                self._shrink(warm)
        except Late:
            late = True
            log.warning("%s: the call that hung came back", self.name)
        finally:
            self._turns.release(self, time.perf_counter() - began, self._share)
        return self._settle(late)

    def _launch(self, warm: Warm, batch: Batch) -> Callable[[], Ranking]:
        """The batch's result; if it cannot even begin, the result raises why."""
        images = [job.payload for job in batch if job.payload is not None]
        limit = self._limit(warm, len(images))
        try:
            maps = any(not isinstance(job.task, Classify) for job in batch)
            result = self._watchdog.call(partial(warm.launch, images, maps=maps), limit)
        except Late:
            raise
        except Exception as error:  # noqa: BLE001
            return partial(_raise, error)
        return partial(self._watchdog.call, result, limit)

    def _limit(self, warm: Warm, images: int) -> float:
        return max(self._timeout, SLOWER * warm.buckets.seconds[warm.buckets.fit(images)])

    def _collect(self, batch: Batch, result: Callable[[], Ranking]) -> bool:
        """Answers a batch, or has it computed again; False if smaller ones may fit into memory."""
        try:
            self._answer(batch, result())
        except Late:
            raise
        except Exception as error:
            if len(batch) > 1 and faults.out_of_memory(error):
                why = faults.in_one_line(error)
                log.warning("%s: no memory for a batch of %d: %s", self.name, len(batch), why)
                self._on_out_of_memory()
                return False
            log.exception("%s: a batch failed", self.name)
            self._fail("the engine failed", error)
            self._failed += batch
        return True

    def _answer(self, batch: Batch, ranking: Ranking) -> None:
        rows = self._rows(batch, ranking)
        if not np.isfinite(ranking.probabilities).all():
            sound = [bool(np.isfinite(row).all()) for row in ranking.probabilities]
            log.error("%s: the network gave NaN for %d images", self.name, sound.count(False))
            self._fail("the engine failed", ArithmeticError("the network gave NaN"))
            self._failed += [job for job, finite in zip(batch, sound, strict=True) if not finite]
            rows = [row for row, finite in zip(rows, sound, strict=True) if finite]
            batch = [job for job, finite in zip(batch, sound, strict=True) if finite]
        if batch:
            self._largest = max(self._largest, len(batch))
            self._on_batch(len(batch), time.perf_counter() - batch[0].started)
            self._batcher.finish(batch, rows)

    def _rows(self, batch: Batch, ranking: Ranking) -> list[Row]:
        rows = ranking.rows()
        if ranking.maps is not None:
            assert self.running is not None
            head = self.running.head
            for index, job in enumerate(batch):
                if not isinstance(job.task, Classify):
                    likeliest = int(rows[index].classes[0])
                    detail = head.detail(job.task, ranking.maps[index], likeliest)
                    rows[index] = rows[index]._replace(detail=detail)
        return rows

    def _shrink(self, warm: Warm) -> None:
        """Computes what did not fit in halves, and makes no larger batches from now on."""
        self._largest = 0
        for batch in self._too_large:
            self._halve(warm, batch)
        if self._largest:
            self.running = warm.up_to(self._largest)
            largest = self.running.buckets.largest
            log.warning("%s: batches of at most %d from now on", self.name, largest)

    def _halve(self, warm: Warm, batch: Batch) -> None:
        faults.give_memory_back()
        middle = (len(batch) + 1) // 2
        for half in (batch[:middle], batch[middle:]):
            for job in half:
                job.batch_size = len(half)
            if not self._collect(half, self._launch(warm, half)):
                self._halve(warm, half)

    def _settle(self, late: bool) -> bool:
        """Ends a turn: what failed waits in front again; whether the engine is sound."""
        failed, self._failed = self._failed, []
        self._flying.clear()
        self._too_large.clear()
        if late:
            return False  # Its jobs are answered.
        if failed:
            self._on_error()
            message = "the engine failed while computing this image; retry"
            self._batcher.retry(failed, EngineFailed(message, retry_after=1.0))
        return not failed

    def _fail(self, what: str, error: Exception) -> None:
        self._poisoned |= faults.poisons(error)
        self.state = "lost" if self._poisoned else "failed"
        self.reason = f"{what}: {faults.in_one_line(error)}"

    def _give_up(self, seconds: float) -> None:
        """The engine hangs: called by the watchdog."""
        self.state = "lost"
        self.reason = f"the engine hangs: a batch has not come back for {seconds:.0f} s"
        log.error("%s: %s", self.name, self.reason)
        self._on_error()
        error = EngineFailed("the engine hangs; retry", retry_after=1.0)
        for batch in (*self._flying, *self._too_large, self._failed):
            self._batcher.fail(batch, error)
        self._refuse()
        if self._flying or self._too_large:  # What else the device has to do may be possible.
            self._turns.release(self, seconds, self._share)

    def _refuse(self) -> None:
        """Lets nobody wait for an engine that does not come back."""
        self._batcher.suspend("the engine is down; retry", unless=self._serves)

    def _recover(self) -> bool:
        """Whether it serves again: a forward has succeeded, or all those of a new engine."""
        patience = threading.Timer(PATIENCE_SECONDS, self._refuse)
        patience.daemon = True
        patience.start()
        try:
            for seconds, attempt in self._attempts():
                if self._poisoned or self._stopping.wait(seconds):
                    self._refuse()
                    return False
                try:
                    attempt()
                except Late:
                    log.warning("%s: the call that hung came back", self.name)
                except Exception as error:  # noqa: BLE001
                    log.warning("%s: still fails: %s", self.name, faults.in_one_line(error))
                    self._fail("the engine failed", error)
                else:
                    break
        finally:
            patience.cancel()
        return True

    def _attempts(self) -> Iterator[tuple[float, Callable[[], None]]]:
        """Seconds to wait, and what to try then; for ever."""
        kind = None
        if self.running is not None:
            kind = self.running.engine.name
            for seconds in PROBE_SECONDS:
                yield seconds, self._probe
        for seconds in chain(BUILD_SECONDS, repeat(BUILD_SECONDS[-1])):
            yield seconds, partial(self._begin_anew, kind)

    def _probe(self) -> None:
        assert self.running is not None
        self._watchdog.call(self.running.probe, self._limit(self.running, 1))
        self._be_ready()
        log.info("%s: the engine works again", self.name)

    def _begin_anew(self, kind: str | None) -> None:
        self.running = None
        gc.collect()  # What failed may still hold the engine, and there may be no memory for two.
        faults.give_memory_back()
        started = time.perf_counter()
        self._serve_with(self._rebuild(kind), time.perf_counter() - started)

    def stop(self) -> None:
        """Ends a recovery; the batcher's closing ends the rest."""
        self._stopping.set()


def _raise(error: Exception) -> NoReturn:
    raise error
