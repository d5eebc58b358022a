"""Jobs, and the order in which those that wait are computed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator
from enum import IntEnum
from itertools import chain
from typing import Generic, TypeVar

from service.inference.tasks import CLASSIFY, Task

Payload = TypeVar("Payload")
Result = TypeVar("Result")
# Jobs of one priority that are computed before one of a lower priority that waits: so everybody
# gets at least a quarter of what those above leave, whatever the clients above do.
MOST_IN_A_ROW = 3


class Priority(IntEnum):
    """The order in which jobs are computed; see `WaitingJobs.pop`."""

    AGAIN = 0  # jobs of a failed batch
    FIRST = 1
    NORMAL = 2
    LAST = 3


ORDER = tuple(Priority)


class Job(Generic[Payload, Result]):
    """One image's way through the service: its future and its times.

    Times are seconds of `time.perf_counter`, 0 until known: `received` when the last byte of its
    request arrived, `admitted` when it got its slot in the queue, `decoding` and `decoded` when
    decoding began and ended, `submitted` when an engine could have taken it, `started` when its
    batch was formed, `finished` when the batch was computed. After its `deadline` it is not
    computed. `cost` is its size in bytes; `final`: it is not retried after a failure.
    """

    __slots__ = (
        "admitted", "batch_size", "cost", "deadline", "decoded", "decoding", "final", "finished",
        "future", "payload", "priority", "received", "started", "submitted", "task",
    )  # fmt: skip

    def __init__(
        self,
        task: Task = CLASSIFY,
        priority: Priority = Priority.NORMAL,
        deadline: float = math.inf,
        received: float = 0.0,
    ) -> None:
        self.future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.task = task
        self.priority = priority
        self.deadline = deadline
        self.received = received
        self.cost = 0
        self.payload: Payload | None = None
        self.admitted = self.decoding = self.decoded = 0.0
        self.submitted = self.started = self.finished = 0.0
        self.batch_size = 0
        self.final = False


class WaitingJobs(Generic[Payload, Result]):
    """Queued jobs by priority, then by arrival.

    Not thread-safe: the batcher's lock guards it.
    """

    def __init__(self) -> None:
        self._queues: tuple[dict[Job[Payload, Result], None], ...] = ({}, {}, {}, {})
        # Jobs of each priority computed in a row while lower ones waited.
        self._in_a_row = [0] * len(self._queues)

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def __iter__(self) -> Iterator[Job[Payload, Result]]:
        return chain.from_iterable(self._queues)

    def add(self, job: Job[Payload, Result]) -> None:
        self._queues[job.priority][job] = None

    def pop(self) -> Job[Payload, Result]:
        """Removes the job to compute next: the oldest of the highest priority, but after
        `MOST_IN_A_ROW` of one priority, the next of the lower ones.

        Raises:
            IndexError: no job is queued.
        """
        occupied = [priority for priority in ORDER if self._queues[priority]]
        for priority in occupied:
            # Jobs that return have waited before, and are at most a batch per engine.
            yields = priority is not Priority.AGAIN and priority != occupied[-1]
            if yields and self._in_a_row[priority] >= MOST_IN_A_ROW:
                self._in_a_row[priority] = 0
                continue
            if yields:
                self._in_a_row[priority] += 1
            job = next(iter(self._queues[priority]))
            del self._queues[priority][job]
            return job
        raise IndexError("no job is queued")

    def put_back(self, jobs: Iterable[Job[Payload, Result]]) -> None:
        """Puts jobs in front of all others, in their order."""
        queue = self._queues[Priority.AGAIN]
        earlier = list(queue)
        queue.clear()
        for job in jobs:
            job.priority = Priority.AGAIN
            queue[job] = None
        queue.update(dict.fromkeys(earlier))

    def discard(self, job: Job[Payload, Result]) -> None:
        self._queues[job.priority].pop(job, None)
