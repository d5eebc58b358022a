from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from service.batcher import Batcher
from service.engines import Engine
from service.errors import EngineFailed
from service.worker import Pixels, Row, Worker


class Faulty:
    """An engine that fails or gives NaN when told to, and counts its forwards."""

    name, device, precision = "faulty", "cpu", "fp32"

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.forwards = 0

    def warm_up(self) -> None:
        if "warm up" in self.failures:
            raise RuntimeError("out of memory")

    def infer(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.forwards += 1
        failure = self.failures.pop(0) if self.failures else ""
        if failure == "raise":
            raise RuntimeError("the device is gone")
        value = np.nan if failure == "nan" else 0.5
        return np.full((len(images), 2), value, dtype=np.float32)


class Bench:
    """A worker with its batcher, and what it told."""

    def __init__(self, *failures: str) -> None:
        self.engine = Faulty()
        self.engine.failures = list(failures)
        self.errors = 0
        self.is_ready = threading.Event()
        self.batcher: Batcher[Pixels, Row] = Batcher(max_jobs=8, max_bytes=10**6)
        self.worker = Worker(
            "test",
            self.batcher,
            lambda: self.engine,
            4,
            on_ready=self._on_ready,
            on_batch=lambda size: None,
            on_error=self._on_error,
        )
        self.worker.start()

    def _on_ready(self, engine: Engine) -> None:
        self.is_ready.set()

    def _on_error(self) -> None:
        self.errors += 1

    async def ask(self) -> Row:
        job = self.batcher.admit(1)
        self.batcher.submit(job, np.zeros((4, 4, 3), dtype=np.uint8), 48)
        async with asyncio.timeout(20):
            return await job.future

    def close(self) -> None:
        self.batcher.close()
        self.worker.stop()
        self.worker.join(20)
        assert not self.worker.is_alive()


def test_answers_come_from_the_engine() -> None:
    bench = Bench()
    assert asyncio.run(bench.ask()).tolist() == [0.5, 0.5]
    assert bench.worker.state == "ready"
    bench.close()


@pytest.mark.parametrize("failure", ["raise", "nan"])
def test_a_failed_batch_is_told_and_the_worker_goes_on(failure: str) -> None:
    bench = Bench(failure)

    async def both() -> Row:
        with pytest.raises(EngineFailed, match="retry"):
            await bench.ask()
        return await bench.ask()

    assert asyncio.run(both()).tolist() == [0.5, 0.5]
    assert bench.errors == 1
    assert bench.worker.state == "ready"
    # The failed one, the probe that showed it works again, and the answer.
    assert bench.engine.forwards == 3
    bench.close()


def test_it_is_not_ready_until_a_forward_succeeds() -> None:
    bench = Bench("raise", "raise", *["raise"] * 50)

    async def fail() -> None:
        with pytest.raises(EngineFailed):
            await bench.ask()
        await asyncio.sleep(0.2)

    asyncio.run(fail())
    assert bench.worker.state == "failed"
    assert "the device is gone" in bench.worker.reason
    bench.close()


def test_an_engine_that_does_not_start_is_said_to_have_failed() -> None:
    bench = Bench("warm up")
    bench.worker.join(20)
    assert bench.worker.state == "failed"
    assert bench.worker.reason == "the engine did not start: out of memory"
    assert not bench.is_ready.is_set()
