"""A request with many images: its share of a model's queue."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable
from typing import TypeVar

from service.errors import QueueFull
from service.inference.deadline import before
from service.inference.interfaces import Computed, Model
from service.inference.jobs import Priority
from service.inference.pace import IDLE
from service.inference.pipeline import Pipeline
from service.inference.tasks import CLASSIFY, Pixels, Task

T = TypeVar("T")
# Between two looks at a full queue.
POLL_SECONDS = 0.02


class QueueShare:
    """Computes the images of one request, which take `Model.batch_share` slots at a time.

    If the queue is full, the first image is refused at once; the others wait for a slot until the
    deadline, as most of the request's work may be done. `received`: when the request's last byte
    arrived, if it has one image; see `Pipeline.compute`.
    """

    def __init__(
        self, pipeline: Pipeline, model: Model, deadline: float, received: float = 0.0
    ) -> None:
        self._pipeline = pipeline
        self._model = model
        self._deadline = deadline
        self._received = received
        self._slots = asyncio.Semaphore(model.batch_share)
        self._turn = asyncio.Lock()
        self._started = 0  # images being computed, or computed

    async def compute(
        self, image: bytes | Pixels, task: Task = CLASSIFY, priority: Priority = Priority.NORMAL
    ) -> Computed:
        """`Pipeline.compute`; raises as it does."""
        async with self._slots:
            while True:
                self._started += 1
                try:
                    return await self._pipeline.compute(
                        self._model, image, self._deadline, task, priority, self._received
                    )
                except QueueFull:
                    self._started -= 1
                    if not self._started:
                        raise
                await self._room()

    async def _room(self) -> None:
        """Waits until the queue seems to have room."""
        async with before(self._deadline):
            await asyncio.sleep(POLL_SECONDS)
            async with self._turn:  # One image looks for all.
                while True:
                    with contextlib.suppress(QueueFull):
                        self._model.check(IDLE)
                        return
                    await asyncio.sleep(POLL_SECONDS)


async def gather(work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """All results; the first failure cancels the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
