"""The queue in front of a model's engines: bounded, with deadlines; engines pull batches from it.

The event loop admits and submits jobs; engine threads take batches and finish them. A job frees its
slot at once when its client disconnects or its deadline passes, and is never computed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic

from service.errors import DeadlineExceeded, EngineFailed, QueueFull, ServiceError
from service.inference.jobs import Job, Payload, Result, WaitingJobs
from service.inference.pace import IDLE, Excess, Load, Pace


class Batcher(Generic[Payload, Result]):
    """Holds up to `max_jobs` jobs, `max_bytes` in total, between admission and computation."""

    def __init__(self, *, max_jobs: int, max_bytes: int, max_delay: float = 0.0) -> None:
        self.max_jobs = max_jobs
        self.max_bytes = max_bytes
        self.max_delay = max_delay
        self._changed = threading.Condition()
        self._admitted: set[Job[Payload, Result]] = set()
        self._waiting: WaitingJobs[Payload, Result] = WaitingJobs()
        self._bytes = 0
        self._computing: set[Job[Payload, Result]] = set()
        self._closed = False
        self._suspended = ""  # why no job may be queued now
        self._excess = Excess()
        self._last_finish = 0.0
        self.pace = Pace()

    @property
    def depth(self) -> int:
        """Jobs admitted and not yet being computed."""
        return len(self._admitted)

    def check(self, cost: int = 0, load: Load = IDLE) -> None:
        """Checks that a job of `cost` bytes would be admitted now, and be done in time.

        Raises:
            QueueFull: it would not.
        """
        ahead = len(self._admitted) + len(self._computing) + load.entering
        if self.depth >= self.max_jobs or self._bytes + cost > self.max_bytes:
            raise QueueFull.of(self.depth, *self._retry(ahead))
        if wait := load.too_late(self.pace, ahead):
            raise QueueFull.too_late(wait, load.within, *self._retry(ahead))

    def _retry(self, ahead: int) -> tuple[float, Callable[[], float]]:
        """When a refused client should come back: see `service.errors.Busy`."""
        return self.pace.seconds(ahead), partial(self._excess.spread, self.pace.seconds(1))

    def admit(self, job: Job[Payload, Result], cost: int) -> None:
        """Gives a job of `cost` bytes a slot, until its batch starts or its future is done.

        Raises:
            QueueFull: no slot is free.
        """
        self.check(cost)
        job.cost, job.admitted = cost, time.perf_counter()
        with self._changed:
            self._admitted.add(job)
            self._bytes += cost
        job.future.add_done_callback(lambda _: self._release(job))

    def submit(self, job: Job[Payload, Result], payload: Payload, cost: int) -> None:
        """Queues an admitted job with its input, which now takes `cost` bytes."""
        with self._changed:
            if job in self._admitted and not self._suspended:
                self._bytes += cost - job.cost
                job.payload, job.cost = payload, cost
                job.submitted = time.perf_counter()
                self._waiting.add(job)
                self._changed.notify()
            reason = self._suspended
        if reason:
            self.fail([job], EngineFailed(reason, retry_after=1.0))

    def withdraw(self, job: Job[Payload, Result]) -> bool:
        """Withdraws a job; True if no engine has it, so that its payload is free."""
        with self._changed:
            queued = job in self._admitted
            job.final = True  # If it is being computed and fails, a retry would be wasted.
            self._remove(job)
            return queued

    def _release(self, job: Job[Payload, Result]) -> None:
        with self._changed:
            self._remove(job)

    def _remove(self, job: Job[Payload, Result]) -> None:
        if job in self._admitted:
            self._admitted.remove(job)
            self._waiting.discard(job)
            self._bytes -= job.cost

    def wait(self, full: int, interrupted: Callable[[], bool] = lambda: False) -> bool:
        """Waits until a batch is due: any job, or with a delay, `full` jobs or the oldest's delay;
        or until it is `interrupted`, which whoever causes it tells by `wake`.

        False once closed and drained. Called from engine threads.
        """
        with self._changed:
            while True:
                if not self._waiting and self._closed:
                    return False
                if interrupted():
                    return True
                if not self._waiting:
                    self._changed.wait()
                    continue
                remaining = self._delay_left(full)
                if remaining <= 0:
                    return True
                self._changed.wait(remaining)

    def wake(self) -> None:
        """Makes the threads in `wait` look whether they are interrupted."""
        with self._changed:
            self._changed.notify_all()

    def due(self, full: int) -> bool:
        """Whether `wait` would return at once because a batch is due."""
        with self._changed:
            return bool(self._waiting) and self._delay_left(full) <= 0

    def _delay_left(self, full: int) -> float:
        """Seconds that a batch should still wait to fill."""
        if not self.max_delay or self._closed or len(self._waiting) >= full:
            return 0.0
        oldest = min(self._waiting, key=lambda job: job.admitted)
        return oldest.admitted + self.max_delay - time.perf_counter()

    def take(self, how_many: Callable[[int], int]) -> list[Job[Payload, Result]]:
        """The first queued jobs; `how_many` maps the queue's length to the batch's size.

        Jobs whose deadline has passed are failed instead. Empty if the queued jobs were withdrawn
        or another thread took them. Called from engine threads.
        """
        now = time.perf_counter()
        with self._changed:
            expired = [job for job in self._waiting if job.deadline <= now]
            for job in expired:
                self._remove(job)
            waiting = len(self._waiting)
            count = how_many(waiting) if waiting else 0
            batch = [self._waiting.pop() for _ in range(min(count, waiting))]
            for job in batch:
                self._remove(job)
                job.started, job.batch_size = now, count
            self._computing.update(batch)
            if self._waiting:
                self._changed.notify()
        self.fail(expired, DeadlineExceeded.passed())
        return batch

    def finish(self, batch: Sequence[Job[Payload, Result]], results: Sequence[Result]) -> None:
        """Delivers a batch's results; called from engine threads."""
        now = time.perf_counter()
        # The engine's time alone: from when it had a job to compute, and was free.
        available = min(batch[0].submitted + self.max_delay, batch[0].started)
        self.pace.computed(len(batch), now - max(self._last_finish, available))
        self._last_finish = now
        with self._changed:
            self._computing.difference_update(batch)

        def deliver() -> None:
            for job, result in zip(batch, results, strict=True):
                job.finished = now
                if not job.future.done():
                    job.future.set_result(result)

        self._on_loop(batch, deliver)

    def fail(self, batch: Sequence[Job[Payload, Result]], error: ServiceError) -> None:
        """Fails every job of a batch with `error`; called from engine threads."""
        with self._changed:
            self._computing.difference_update(batch)

        def deliver() -> None:
            for job in batch:
                if not job.future.done():
                    job.future.set_exception(error)

        self._on_loop(batch, deliver)

    def retry(self, batch: Sequence[Job[Payload, Result]], error: ServiceError) -> None:
        """Puts the jobs of a failed batch back in front, in their order; a second failure is final,
        with `error`. Called from engine threads.

        They were admitted before, so they return even if their slots are taken: at most one batch
        per engine.
        """
        with self._changed:
            self._computing.difference_update(batch)
            again = [job for job in batch if not job.final and not job.future.done()]
            for job in again:
                job.final = True
                self._admitted.add(job)
                self._bytes += job.cost
            self._waiting.put_back(again)
            self._changed.notify()
        self.fail([job for job in batch if job not in again], error)

    def suspend(self, reason: str, unless: Callable[[], bool]) -> None:
        """Fails queued jobs, and from now on submitted ones, until `resume`.

        Does nothing if `unless()`, under the same lock: another engine may serve.
        """
        with self._changed:
            if unless():
                return
            self._suspended = reason
            waiting = list(self._waiting)
            for job in waiting:
                self._remove(job)
        self.fail(waiting, EngineFailed(reason, retry_after=1.0))

    def resume(self) -> None:
        """Lets jobs queue again; the time since the latest batch does not count as theirs."""
        with self._changed:
            self._suspended = ""
            self._last_finish = time.perf_counter()

    @staticmethod
    def _on_loop(batch: Sequence[Job[Payload, Result]], deliver: Callable[[], None]) -> None:
        if not batch:
            return
        loop = batch[0].future.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver)

    def close(self) -> None:
        """Lets the engine threads finish queued jobs, and then end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
