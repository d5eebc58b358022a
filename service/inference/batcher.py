"""The queue in front of a model's engines: bounded, with deadlines, emptied in batches by pull.

The event loop admits and submits jobs; engine threads take batches and finish them. A job whose
caller left, or whose deadline passed, gives its place back at once and is never computed.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import chain, islice
from typing import Generic, TypeVar

from service.errors import EngineFailed, QueueFull, ServiceError
from service.inference.tasks import CLASSIFY, Task

Payload = TypeVar("Payload")
Result = TypeVar("Result")


class Priority(IntEnum):
    """Which jobs are computed first."""

    AGAIN = 0  # those of a batch that failed
    FIRST = 1
    NORMAL = 2
    LAST = 3


class Job(Generic[Payload, Result]):
    """One image's way through the service: its future, and its clock.

    Times are seconds of `time.perf_counter`, 0 until they are known: `admitted` when it got its
    slot in the queue, `decoding` and `decoded` when decoding began and ended, `started` when its
    batch was formed, `finished` when the batch was computed. `cost` is what it occupies, in bytes;
    `final`: it is not computed again after a failure.
    """

    __slots__ = (
        "admitted", "batch_size", "cost", "decoded", "decoding", "final", "finished", "future",
        "payload", "priority", "started", "task",
    )  # fmt: skip

    def __init__(self, task: Task = CLASSIFY, priority: Priority = Priority.NORMAL) -> None:
        self.future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.task = task
        self.priority = priority
        self.cost = 0
        self.payload: Payload | None = None
        self.admitted = self.decoding = self.decoded = self.started = self.finished = 0.0
        self.batch_size = 0
        self.final = False


class WaitingJobs(Generic[Payload, Result]):
    """Jobs in the order in which they are computed: by priority, then by arrival.

    It is not thread-safe: the batcher's lock guards it.
    """

    def __init__(self) -> None:
        self._lines: tuple[dict[Job[Payload, Result], None], ...] = ({}, {}, {}, {})

    def __len__(self) -> int:
        return sum(map(len, self._lines))

    def __iter__(self) -> Iterator[Job[Payload, Result]]:
        return chain.from_iterable(self._lines)

    def add(self, job: Job[Payload, Result]) -> None:
        self._lines[job.priority][job] = None

    def put_back(self, jobs: Iterable[Job[Payload, Result]]) -> None:
        """In front of all others, in their order."""
        line = self._lines[Priority.AGAIN]
        before = list(line)
        line.clear()
        for job in jobs:
            job.priority = Priority.AGAIN
            line[job] = None
        line.update(dict.fromkeys(before))

    def discard(self, job: Job[Payload, Result]) -> None:
        self._lines[job.priority].pop(job, None)


class Batcher(Generic[Payload, Result]):
    """At most `max_jobs` jobs of together `max_bytes` between admission and computation."""

    def __init__(self, *, max_jobs: int, max_bytes: int, max_delay: float = 0.0) -> None:
        self.max_jobs = max_jobs
        self.max_bytes = max_bytes
        self.max_delay = max_delay
        self._changed = threading.Condition()
        self._admitted: set[Job[Payload, Result]] = set()
        self._waiting: WaitingJobs[Payload, Result] = WaitingJobs()
        self._bytes = 0
        self._unanswered = 0
        self._closed = False
        self._suspended = ""  # why nothing may wait now
        self._batch_seconds = 0.0
        self.seconds_per_job = 0.0  # as measured, from admission to answer
        self._last_finish = 0.0

    @property
    def depth(self) -> int:
        """Jobs admitted and not yet computing."""
        return len(self._admitted)

    def retry_after(self) -> float:
        """Seconds until the present queue is expected to have drained, from the measured rate."""
        return max(1.0, math.ceil(self.depth * self.seconds_per_job))

    def check(self, cost: int = 0, within: float = math.inf) -> None:
        """Whether a job of `cost` bytes would be admitted now, and begin `within` seconds.

        Raises:
            QueueFull: it would not.
        """
        depth = self.depth
        if depth >= self.max_jobs or self._bytes + cost > self.max_bytes:
            raise QueueFull.of(depth, self.retry_after())
        # Its own batch will have others in it, and may just have missed one.
        wait = self._unanswered and (self._unanswered * self.seconds_per_job + self._batch_seconds)
        if wait > within:
            raise QueueFull.too_late(wait, within, self.retry_after())

    def admit(self, job: Job[Payload, Result], cost: int) -> None:
        """Gives a job of `cost` bytes a slot, until it is computed or its future is done.

        Raises:
            QueueFull: no slot is free.
        """
        self.check(cost)
        job.cost, job.admitted = cost, time.perf_counter()
        with self._changed:
            self._admitted.add(job)
            self._bytes += cost
        self._unanswered += 1
        job.future.add_done_callback(lambda _: self._release(job))

    def submit(self, job: Job[Payload, Result], payload: Payload, cost: int) -> None:
        """Hands over an admitted job's input, which now occupies `cost` bytes."""
        with self._changed:
            if job in self._admitted and not self._suspended:
                self._bytes += cost - job.cost
                job.payload, job.cost = payload, cost
                self._waiting.add(job)
                self._changed.notify()
            reason = self._suspended
        if reason:
            self.fail([job], EngineFailed(reason, retry_after=1.0))

    def withdraw(self, job: Job[Payload, Result]) -> bool:
        """Whether the job was not yet computing, and now never will be; its payload is free."""
        with self._changed:
            waited = job in self._admitted
            job.final = True  # Where it is computing, and fails, nobody wants it again.
            self._remove(job)
            return waited

    def _release(self, job: Job[Payload, Result]) -> None:
        self._unanswered -= 1
        with self._changed:
            self._remove(job)

    def _remove(self, job: Job[Payload, Result]) -> None:
        if job in self._admitted:
            self._admitted.remove(job)
            self._waiting.discard(job)
            self._bytes -= job.cost

    def wait(self, full: int) -> bool:
        """Waits until a batch is due: any work, or with a delay `full` jobs or the oldest's delay.

        False once closed and drained. Called by engine threads.
        """
        with self._changed:
            while True:
                if not self._waiting:
                    if self._closed:
                        return False
                    self._changed.wait()
                    continue
                remaining = self._delay_left(full)
                if remaining <= 0:
                    return True
                self._changed.wait(remaining)

    def _delay_left(self, full: int) -> float:
        """Seconds that a batch should still wait to fill up."""
        if not self.max_delay or self._closed or len(self._waiting) >= full:
            return 0.0
        oldest = min(self._waiting, key=lambda job: job.admitted)
        return oldest.admitted + self.max_delay - time.perf_counter()

    def take(self, how_many: Callable[[int], int]) -> list[Job[Payload, Result]]:
        """The oldest of the waiting jobs, as many as `how_many` says of their number.

        Empty if those that waited have left, or another thread has them. Called by engine threads.
        """
        with self._changed:
            waiting = len(self._waiting)
            count = how_many(waiting) if waiting else 0
            batch = list(islice(self._waiting, count))
            now = time.perf_counter()
            for job in batch:
                self._remove(job)
                job.started, job.batch_size = now, count
            if self._waiting:
                self._changed.notify()
            return batch

    def finish(self, batch: Sequence[Job[Payload, Result]], results: Sequence[Result]) -> None:
        """Delivers a batch's results; called by engine threads."""
        now = time.perf_counter()
        # The time when nobody was there does not count, nor that of waiting for company; that of
        # decoding and of a busy loop does.
        came = min(batch[0].admitted + self.max_delay, batch[0].started)
        since = max(self._last_finish, came)
        measured = (now - since) / len(batch)
        self._batch_seconds = now - batch[0].started
        previous = self.seconds_per_job or measured
        self.seconds_per_job = 0.8 * previous + 0.2 * measured
        self._last_finish = now

        def deliver() -> None:
            for job, result in zip(batch, results, strict=True):
                job.finished = now
                if not job.future.done():
                    job.future.set_result(result)

        self._on_loop(batch, deliver)

    def fail(self, batch: Sequence[Job[Payload, Result]], error: ServiceError) -> None:
        """Fails every job of a batch with `error`; called by engine threads."""

        def deliver() -> None:
            for job in batch:
                if not job.future.done():
                    job.future.set_exception(error)

        self._on_loop(batch, deliver)

    def retry(self, batch: Sequence[Job[Payload, Result]], error: ServiceError) -> None:
        """Lets the jobs of a batch that failed wait in front again, in their order, and fails those
        with `error` for which it was the second time; called by engine threads.

        They have been admitted once: they come back even where their places are taken, at most as
        many as could compute.
        """
        with self._changed:
            again = [job for job in batch if not job.final and not job.future.done()]
            for job in again:
                job.final = True
                self._admitted.add(job)
                self._bytes += job.cost
            self._waiting.put_back(again)
            self._changed.notify()
        self.fail([job for job in batch if job not in again], error)

    def suspend(self, reason: str, unless: Callable[[], bool]) -> None:
        """Fails what waits, and from now on what is submitted, until `resume`.

        Nothing happens if `unless` is true of the same moment, as where another engine serves.
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
        """Jobs may wait again; the time since the latest batch was nobody's."""
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
        """Lets the engine threads finish what waits, and then end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
