"""The thread that drives a model's engine on one device."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from service import runtime
from service.engines import faults
from service.engines.builder import EngineBuilder
from service.engines.cuda_graph import free_unused, give_memory_back
from service.engines.device_share import DeviceShare, Tenant
from service.engines.engine import EngineEvents, Warm
from service.engines.recovery import Recovery
from service.engines.status import EngineStatus, State
from service.engines.turn import Turn
from service.engines.watchdog import Late, Watchdog
from service.errors import EngineFailed
from service.inference.batcher import Batcher
from service.inference.ranking import Row
from service.inference.tasks import ImageInput

log = logging.getLogger(__name__)


class EngineThread(threading.Thread):
    """Starts an engine, then computes batches until the batcher is closed.

    `builder` makes the first engine, and better ones, which replace it as soon as they are warm,
    between two batches or while it idles. `device` is shared with other models, `tenant` is what it
    knows of this one; `timeout`, in seconds, is when a call is taken to hang; `serves` says whether
    any engine of the queue is ready. `events` come from this thread, or from its watchdog's.

    Jobs of a batch that failed are computed once more. After a failure the engine is ready again
    only when a real forward has succeeded.
    """

    def __init__(
        self,
        name: str,
        batcher: Batcher[ImageInput, Row],
        builder: EngineBuilder,
        events: EngineEvents,
        *,
        device: DeviceShare,
        tenant: Tenant,
        timeout: float,
        serves: Callable[[], bool],
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._status = EngineStatus()
        self.running: Warm | None = None
        self._batcher = batcher
        self._builder = builder
        self._events = events
        self._device = device
        self._tenant = tenant
        self._serves = serves
        self._watchdog = Watchdog(name, timeout, self._give_up)
        self._stopping = threading.Event()
        self._better: tuple[Warm, float] | None = None  # and the seconds that it took
        self._turn: Turn | None = None

    @property
    def state(self) -> State:
        return self._status.state

    @property
    def poisoned(self) -> bool:
        """No call to the device can succeed in this process any more."""
        return self._status.poisoned

    @property
    def reason(self) -> str:
        """Why the engine is not ready; empty if it is."""
        return self._status.reason

    def run(self) -> None:
        try:
            self._work()
        # A bug: without this thread, nobody would get a response, and nothing would say so.
        except Exception as error:
            log.exception("%s: the engine's thread has ended", self.name)
            self._status.ended(error)
            self._refuse()
            self._events.error()
        finally:
            # What is frozen against garbage collection must not be left in a circle.
            self._watchdog.stop()
            self._device.free(self._tenant)
            self.running = self._better = None
            with suppress(Exception):  # The device may be lost.
                give_memory_back()  # torch would keep it from other processes.

    def _work(self) -> None:
        self._watchdog.start()
        serves = self._start_engine() or self._recover()
        if serves and self._builder.better_kinds and not self._stopping.is_set():
            name = f"{self.name}/improve"
            threading.Thread(target=self._find_better, name=name, daemon=True).start()
        while (
            serves
            and self.running
            and self._batcher.wait(self.running.buckets.largest, self._has_better)
        ):
            better, self._better = self._better, None
            if better is not None:
                self._serve_with(*better)
            serves = self._take_turn(self.running) or self._recover()

    def _has_better(self) -> bool:
        return self._better is not None

    def stop(self) -> None:
        """Ends a recovery; the batcher's closing ends the rest."""
        self._stopping.set()

    def _start_engine(self) -> bool:
        started = time.perf_counter()
        try:
            warm = self._builder.first(self._status.warms_up)
        # An engine may fail in any way its libraries fail; the service stays up to say so.
        except Exception as error:
            self._events.error()
            self._status.failed("the engine did not start", error)
            # Where a device is lost, the place in the code says nothing, and each successor fails.
            log.exception("%s: %s", self.name, self.reason, exc_info=not self._status.poisoned)
            return False
        self._serve_with(warm, time.perf_counter() - started)
        return True

    def _serve_with(self, warm: Warm, seconds: float) -> None:
        before, self.running = self.running, warm
        self._batcher.pace.measured(warm.buckets.seconds)
        runtime.settle_memory()
        engine, parity = warm.engine, warm.parity
        log.info(
            "%s: %s %s in %s on %s after %.1f s; batch sizes %s; "
            "%.0f %% of %d images have the same maximum as in fp32, differences are within %.2g",
            self.name,
            f"replaces {before.engine.name} by" if before else "ready with",
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
        self._events.ready(warm)
        self._be_ready()

    def _be_ready(self) -> None:
        self._status.ready()
        self._batcher.resume()

    def _find_better(self) -> None:
        for build in self._builder.better():
            if self._stopping.is_set():
                return
            started = time.perf_counter()
            try:
                self._better = build(), time.perf_counter() - started
                self._batcher.wake()
            # What serves goes on serving.
            except Exception as error:  # noqa: BLE001
                why = faults.in_one_line(error)
                log.warning("%s: keeps its engine, the better one failed: %s", self.name, why)
                if faults.poisons(error):
                    self._status.failed("a better engine failed", error)
                    self._events.error()
                    return

    def _take_turn(self, warm: Warm) -> bool:
        """Whether the engine is as sound as before."""
        turn = self._turn = Turn(
            self.name,
            warm,
            self._batcher,
            self._device,
            self._tenant,
            self._watchdog,
            self._status,
            self._events,
        )
        try:
            turn.compute(self._has_better)
            if turn.warm is not warm:  # Its batches are smaller now.
                self.running = turn.warm
                self._batcher.pace.measured(turn.warm.buckets.seconds)
            if turn.failed:
                self._events.error()
                message = "the engine failed while computing this image; retry"
                self._batcher.retry(turn.failed, EngineFailed(message, retry_after=1.0))
        except Late:
            log.warning("%s: the call that hung has returned", self.name)
            self._device.free(self._tenant)  # Perhaps it waited for the device, and now has it.
            return False  # Its jobs are answered.
        except Exception:
            self._device.free(self._tenant)
            self._fail_unanswered(turn, "the engine's thread has ended; retry")
            raise
        finally:
            self._turn = None
            self._device.leave(self._tenant)
        return not turn.failed

    def _give_up(self, seconds: float) -> None:
        """The engine hangs: called by the watchdog."""
        self._status.hangs(seconds)
        log.error("%s: %s", self.name, self._status.reason)
        self._device.free(self._tenant)  # What else the device has to do may be possible.
        if (turn := self._turn) is not None:
            self._fail_unanswered(turn, "the engine hangs; retry")
        self._refuse()
        self._events.error()

    def _fail_unanswered(self, turn: Turn, why: str) -> None:
        for batch in turn.unanswered():
            self._batcher.fail(batch, EngineFailed(why, retry_after=1.0))

    def _refuse(self) -> None:
        """Lets nobody wait for an engine that does not come back."""
        self._batcher.suspend("the engine is down; retry", unless=self._serves)

    def _recover(self) -> bool:
        """Whether it serves again: a forward has succeeded, or all those of a new engine."""
        kind = self.running.engine.name if self.running else None
        probe = self._probe if self.running else None
        rebuild = partial(self._rebuild, kind)
        return Recovery(self.name, self._status, probe, rebuild, self._refuse).run(self._stopping)

    def _probe(self) -> None:
        assert self.running is not None
        self._watchdog.call(self.running.probe, self.running.expected(1))
        log.info("%s: the engine has recovered", self.name)
        self._be_ready()

    def _rebuild(self, kind: str | None) -> None:
        self.running = None
        free_unused()  # There may be no memory for two engines.
        started = time.perf_counter()
        self._serve_with(self._builder.rebuild(kind), time.perf_counter() - started)
