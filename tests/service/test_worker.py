from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from service.batcher import Batcher
from service.engines import Parity, Warm
from service.engines.buckets import Buckets
from service.errors import EngineFailed
from service.ranking import Ranking, Row, rank
from service.turns import Turns
from service.worker import Pixels, Worker


class Faulty:
    """An engine that fails or gives NaN when told to, and counts its forwards.

    What it is given in the first pixel comes back as the first probability, in hundredths.
    """

    name, device, precision = "faulty", "cpu", "fp32"

    def __init__(self, *failures: str, in_flight: int = 1) -> None:
        self.failures = list(failures)
        self.in_flight = in_flight
        self.flying = self.most_flying = 0
        self.forwards = 0

    def launch(self, images: Sequence[NDArray[np.uint8]], size: int) -> Callable[[], Ranking]:
        assert len(images) <= size
        self.forwards += 1
        failure = self.failures.pop(0) if self.failures else ""
        if failure == "raise":
            raise RuntimeError("the device is gone")
        first = np.array([image[0, 0, 0] for image in images], dtype=np.float32) / 100
        found = np.stack([first, 1 - first], axis=1, dtype=np.float32)
        found[:] = np.nan if failure == "nan" else found
        self.flying += 1
        self.most_flying = max(self.flying, self.most_flying)

        def collect() -> Ranking:
            self.flying -= 1
            return rank(found)

        return collect

    def warm(self) -> Warm:
        blank = np.zeros((4, 4, 3), dtype=np.uint8)

        def probe() -> None:
            self.launch([blank], 1)()

        buckets = Buckets({1: 0.01, 2: 0.011, 4: 0.012})
        return Warm(self, buckets, Parity(0, 1.0, 0.0), probe)


class Bench:
    """A worker with its batcher, and what it told."""

    def __init__(
        self,
        engine: Faulty,
        *,
        improve: Sequence[Callable[[], Warm]] = (),
        turns: Turns | None = None,
        start: bool = True,
    ) -> None:
        self.engine = engine
        self.errors = 0
        self.ready: list[str] = []
        self.batcher: Batcher[Pixels, Row] = Batcher(max_jobs=64, max_bytes=10**6)
        self.worker = Worker(
            "test",
            self.batcher,
            engine.warm,
            improve=improve,
            turns=turns or Turns(),
            on_ready=lambda warm: self.ready.append(warm.engine.name),
            on_batch=lambda size: None,
            on_error=self._on_error,
        )
        if start:
            self.worker.start()

    def _on_error(self) -> None:
        self.errors += 1

    async def ask(self, value: int = 75) -> dict[int, float]:
        """Probabilities by class."""
        job = self.batcher.admit(1)
        self.batcher.submit(job, np.full((4, 4, 3), value, dtype=np.uint8), 48)
        async with asyncio.timeout(20):
            classes, probabilities = await job.future
        return dict(zip(classes.tolist(), np.round(probabilities, 4).tolist(), strict=True))

    def close(self) -> None:
        self.batcher.close()
        self.worker.stop()
        self.worker.join(20)
        assert not self.worker.is_alive()


def test_answers_come_from_the_engine() -> None:
    bench = Bench(Faulty())
    assert asyncio.run(bench.ask()) == {0: 0.75, 1: 0.25}
    assert bench.worker.state == "ready"
    bench.close()


@pytest.mark.parametrize("failure", ["raise", "nan"])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_failed_batch_is_told_and_the_worker_goes_on(failure: str, in_flight: int) -> None:
    bench = Bench(Faulty(failure, in_flight=in_flight))

    async def both() -> dict[int, float]:
        with pytest.raises(EngineFailed, match="retry"):
            await bench.ask()
        return await bench.ask()

    assert asyncio.run(both()) == {0: 0.75, 1: 0.25}
    assert bench.errors == 1
    assert bench.worker.state == "ready"
    # The failed one, the probe that showed it works again, and the answer.
    assert bench.engine.forwards == 3
    bench.close()


def test_it_is_not_ready_until_a_forward_succeeds() -> None:
    bench = Bench(Faulty(*["raise"] * 50))

    async def fail() -> None:
        with pytest.raises(EngineFailed):
            await bench.ask()
        await asyncio.sleep(0.2)

    asyncio.run(fail())
    assert bench.worker.state == "failed"
    assert "the device is gone" in bench.worker.reason
    bench.close()


def test_an_engine_that_does_not_start_is_said_to_have_failed() -> None:
    engine = Faulty()
    bench = Bench(engine, start=False)

    def fails() -> Warm:
        raise RuntimeError("out of memory")

    bench.worker._build = fails
    bench.worker.start()
    bench.worker.join(20)
    assert bench.worker.state == "failed"
    assert bench.worker.reason == "the engine did not start: out of memory"
    assert not bench.ready


@pytest.mark.parametrize("in_flight", [1, 2])
def test_every_caller_gets_its_own_answer_with_batches_in_flight(in_flight: int) -> None:
    bench = Bench(Faulty(in_flight=in_flight), start=False)

    async def ask_all() -> list[dict[int, float]]:
        asking = asyncio.gather(*(bench.ask(value) for value in range(60)))
        await asyncio.sleep(0.05)
        bench.worker.start()  # Now a queue waits for it.
        return await asking

    answers = asyncio.run(ask_all())
    assert [round(answer[0] * 100) for answer in answers] == list(range(60))
    assert bench.engine.most_flying == in_flight
    bench.close()


def test_a_better_engine_takes_over_and_no_request_is_lost() -> None:
    better = Faulty()
    better.name = "better"
    may_come = threading.Event()

    def improve() -> Warm:
        assert may_come.wait(20)
        return better.warm()

    bench = Bench(Faulty(), improve=[improve])

    async def ask_on() -> int:
        asked = 0
        while bench.ready != ["faulty", "better"]:
            answers = await asyncio.gather(*(bench.ask(value) for value in range(10)))
            assert [round(answer[0] * 100) for answer in answers] == list(range(10))
            asked += 10
            if asked == 50:
                may_come.set()
        return asked + len(await asyncio.gather(*(bench.ask() for _ in range(10))))

    assert asyncio.run(ask_on()) > 50
    assert bench.errors == 0
    assert better.forwards > 0
    bench.close()


def test_a_better_engine_that_fails_leaves_the_one_that_serves() -> None:
    def fails() -> Warm:
        raise RuntimeError("no compiler")

    bench = Bench(Faulty(), improve=[fails])
    time.sleep(0.05)
    assert asyncio.run(bench.ask()) == {0: 0.75, 1: 0.25}
    assert bench.ready == ["faulty"]
    assert bench.worker.state == "ready"
    bench.close()
