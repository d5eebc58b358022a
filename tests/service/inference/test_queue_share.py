"""Requests with many images: they wait for the queue, unless their first image finds it full."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from service.cli.trial import Instant
from service.errors import DeadlineExceeded, QueueFull, TooLarge
from service.inference.batcher import Batcher
from service.inference.interfaces import Computed
from service.inference.jobs import Job
from service.inference.pipeline import Pipeline
from service.inference.queue_share import QueueShare, gather
from service.inference.ranking import Row
from service.inference.tasks import ImageInput
from service.metrics import Metrics

IMAGE = np.zeros((32, 32, 3), np.uint8)
ROW = Row(np.arange(10, dtype=np.int32), np.full(10, 0.1, np.float32))


class Computing(Instant):
    """Its engine computes nothing until it may; other requests may hold slots of its queue."""

    batch_share = 3

    def __init__(self, max_jobs: int) -> None:
        super().__init__()
        self.batcher = Batcher(max_jobs=max_jobs, max_bytes=2**20)
        self.may = threading.Event()
        self._thread = threading.Thread(target=self._compute, daemon=True)
        self._thread.start()

    def _compute(self) -> None:
        self.may.wait()
        while self.batcher.wait(1):
            batch = self.batcher.take(lambda waiting: waiting)
            self.batcher.finish(batch, [ROW] * len(batch))

    def others(self, count: int) -> list[Job[ImageInput, Row]]:
        jobs: list[Job[ImageInput, Row]] = [Job() for _ in range(count)]
        for job in jobs:
            self.batcher.admit(job, 1)
        return jobs

    def end(self) -> None:
        self.may.set()
        self.batcher.close()
        self._thread.join()


class Repository:
    def __init__(self, model: Computing) -> None:
        self.models = {model.name: model}


def share_of(model: Computing, seconds: float = 60) -> QueueShare:
    deadline = asyncio.get_running_loop().time() + seconds
    metrics = Metrics()
    metrics.watch_model(model.name, (), 2, depth=lambda: 0, ready=lambda: True)
    pipeline = Pipeline(metrics, Repository(model))  # type: ignore[arg-type]
    return QueueShare(pipeline, model, deadline)


async def compute_eight(share: QueueShare) -> list[Computed]:
    return await gather(share.compute(IMAGE) for _ in range(8))


def test_images_beyond_the_first_wait_for_a_slot() -> None:
    async def scene() -> None:
        model = Computing(max_jobs=2)
        (other,) = model.others(1)  # One slot is left for three images at a time.
        share = share_of(model)
        computing = asyncio.create_task(compute_eight(share))
        await asyncio.sleep(0.1)
        assert model.batcher.depth == 2
        assert not computing.done()
        model.may.set()
        assert len(await computing) == 8
        other.future.cancel()
        model.end()

    asyncio.run(scene())


def test_a_first_image_without_a_slot_is_refused_at_once() -> None:
    async def scene() -> None:
        model = Computing(max_jobs=2)
        others = model.others(2)
        share = share_of(model)
        with pytest.raises(QueueFull):
            await compute_eight(share)
        for other in others:
            other.future.cancel()
        model.end()

    asyncio.run(scene())


def test_the_wait_for_a_slot_ends_with_the_deadline() -> None:
    async def scene() -> None:
        model = Computing(max_jobs=2)
        (other,) = model.others(1)
        share = share_of(model, 0.2)
        with pytest.raises(DeadlineExceeded):
            await compute_eight(share)
        other.future.cancel()
        await asyncio.sleep(0)
        assert model.batcher.depth == 0
        model.end()

    asyncio.run(scene())


def test_who_leaves_while_waiting_frees_every_slot() -> None:
    async def scene() -> None:
        model = Computing(max_jobs=2)
        (other,) = model.others(1)
        share = share_of(model)
        computing = asyncio.create_task(compute_eight(share))
        await asyncio.sleep(0.1)
        computing.cancel()
        await asyncio.wait([computing])
        other.future.cancel()
        await asyncio.sleep(0)
        assert model.batcher.depth == 0
        model.end()

    asyncio.run(scene())


def test_an_image_larger_than_all_of_the_queue_is_too_large() -> None:
    """It would never be admitted, however often it is sent again."""

    async def scene() -> None:
        model = Computing(max_jobs=2)
        share = share_of(model)
        most = model.settings.max_queue_bytes
        with pytest.raises(TooLarge, match=f"has {most + 1} bytes; the limit of trial is {most}"):
            await share.compute(bytes(most + 1))
        model.end()

    asyncio.run(scene())
