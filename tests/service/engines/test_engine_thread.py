from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from service.engines import cuda_graph, engine_thread, recovery, turn
from service.engines.buckets import Buckets
from service.engines.builder import EngineBuilder
from service.engines.device_share import DeviceShare, Tenant
from service.engines.engine import EngineEvents, Warm
from service.engines.engine_thread import EngineThread
from service.engines.faults import CaptureFailed
from service.engines.jpeg import Image
from service.engines.parity import Parity
from service.errors import EngineFailed
from service.inference.batcher import Batcher
from service.inference.jobs import Job
from service.inference.ranking import Ranking, Row, rank
from service.inference.tasks import CLASSIFY, ImageInput, Task
from tests.support.waiting import until

POISON = "CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for what fails for good."""
    monkeypatch.setattr(recovery, "PROBE_SECONDS", (0.0, 0.05, 0.05))
    monkeypatch.setattr(recovery, "BUILD_SECONDS", (0.05,))
    monkeypatch.setattr(recovery, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr("service.engines.watchdog.LOOK_SECONDS", 0.02)


class Faulty:
    """An engine that fails as it is told, forward by forward, and counts its forwards.

    What it is given in the first pixel comes back as the first probability, in hundredths. It has
    memory for batches of `memory`; "hang" lasts until `freed` is set.
    """

    name, device, precision = "faulty", "cpu", "fp32"

    def __init__(self, *failures: str, in_flight: int = 1, memory: int = 4) -> None:
        self.failures = list(failures)
        self.in_flight = in_flight
        self.tuning = None
        self.graphs = 0
        self.memory = memory
        self.freed = threading.Event()
        self.flying = self.most_flying = 0
        self.sizes: list[int] = []

    @property
    def forwards(self) -> int:
        return len(self.sizes)

    def launch(
        self, images: Sequence[Image], size: int, tasks: Sequence[Task] = ()
    ) -> Callable[[], Ranking]:
        assert len(images) <= size
        self.sizes.append(size)
        failure = self.failures.pop(0) if self.failures else ""
        if failure == "raise":
            raise RuntimeError("the device is gone")
        if failure == "poison":
            raise RuntimeError(POISON)
        if size > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        first = np.array([image[0, 0, 0] for image in images], dtype=np.float32) / 100
        found = np.stack([first, 1 - first], axis=1, dtype=np.float32)
        if failure == "nan":
            found[0] = np.nan
        self.flying += 1
        self.most_flying = max(self.flying, self.most_flying)

        def collect() -> Ranking:
            self.flying -= 1
            if failure == "raise later":
                raise RuntimeError("the device is gone")
            if failure == "hang":
                assert self.freed.wait(20)
            details = [None if task == CLASSIFY else found[0] for task in tasks]
            return rank(found)._replace(details=details)

        return collect

    def prepare(self, size: int) -> None:
        pass

    def warm(self) -> Warm:
        blank = np.zeros((4, 4, 3), dtype=np.uint8)

        def probe() -> None:
            self.launch([blank], 1)()

        buckets = Buckets({1: 0.001, 2: 0.0011, 4: 0.0012})
        return Warm(self, buckets, Parity(0, 1.0, 0.0), probe)


class Builder(EngineBuilder):
    """Builds what it is given instead of the engines of a bundle."""

    def __init__(
        self,
        first: Callable[[], Warm],
        rebuild: Callable[[str | None], Warm],
        improve: Sequence[Callable[[], Warm]],
    ) -> None:
        self.build_first = first
        self.build_again = rebuild
        self.improve = improve
        self.better_kinds = ["better"] * len(improve)

    def first(self, progress: Callable[[str], object]) -> Warm:
        return self.build_first()

    def better(self) -> Iterator[Callable[[], Warm]]:
        return iter(self.improve)

    def rebuild(self, kind: str | None) -> Warm:
        return self.build_again(kind)


class Bench:
    """An engine thread with its batcher, and its events."""

    def __init__(
        self,
        engine: Faulty,
        *,
        rebuild: Callable[[str | None], Warm] | None = None,
        improve: Sequence[Callable[[], Warm]] = (),
        device: DeviceShare | None = None,
        batcher: Batcher[ImageInput, Row] | None = None,
        serves: Callable[[], bool] | None = None,
        start: bool = True,
    ) -> None:
        self.engine = engine
        self.tenant = Tenant()
        self.errors = self.out_of_memory = 0
        self.bugs: list[Exception] = []  # raised where errors are counted
        self.ready: list[str] = []
        self.batches: list[int] = []
        self.batcher = batcher or Batcher[ImageInput, Row](max_jobs=64, max_bytes=10**6)
        self.builder = Builder(engine.warm, rebuild or (lambda kind: engine.warm()), improve)
        self.thread = EngineThread(
            "test",
            self.batcher,
            self.builder,
            EngineEvents(
                ready=lambda warm: self.ready.append(warm.engine.name),
                batch=lambda size, seconds: self.batches.append(size),
                error=self._on_error,
                out_of_memory=self._on_out_of_memory,
            ),
            device=device or DeviceShare(2),
            tenant=self.tenant,
            timeout=0.3,
            serves=serves or (lambda: self.thread.state == "ready"),
        )
        if start:
            self.thread.start()

    def _on_error(self) -> None:
        self.errors += 1
        if self.bugs:
            raise self.bugs.pop()

    def _on_out_of_memory(self) -> None:
        self.out_of_memory += 1

    async def ask(self, value: int = 75) -> dict[int, float]:
        """Probabilities by class."""
        job: Job[ImageInput, Row] = Job()
        self.batcher.admit(job, 1)
        self.batcher.submit(job, np.full((4, 4, 3), value, dtype=np.uint8), 48)
        async with asyncio.timeout(20):
            row = await job.future
        probabilities = np.round(row.probabilities, 4).tolist()
        return dict(zip(row.classes.tolist(), probabilities, strict=True))

    async def ask_together(self, count: int) -> list[dict[int, float] | BaseException]:
        """The outcomes of jobs that wait when the thread starts."""
        asking = asyncio.gather(*(self.ask(v) for v in range(count)), return_exceptions=True)
        await asyncio.sleep(0.05)
        self.thread.start()
        return await asking

    def until(self, state: str) -> None:
        end = time.monotonic() + 20
        while self.thread.state != state:
            assert time.monotonic() < end, self.thread.state
            time.sleep(0.005)

    def close(self) -> None:
        self.batcher.close()
        self.thread.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()


def join(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(20)


def numbers(outcomes: Sequence[dict[int, float] | BaseException]) -> list[int]:
    """What the jobs were given, of those that were answered."""
    return [round(outcome[0] * 100) for outcome in outcomes if isinstance(outcome, dict)]


def test_answers_come_from_the_engine() -> None:
    bench = Bench(Faulty())
    assert asyncio.run(bench.ask()) == {0: 0.75, 1: 0.25}
    assert bench.thread.state == "ready"
    bench.close()


@pytest.mark.parametrize("failure", ["raise", "nan"])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_batch_that_failed_is_computed_once_more(failure: str, in_flight: int) -> None:
    bench = Bench(Faulty(failure, in_flight=in_flight))
    assert asyncio.run(bench.ask()) == {0: 0.75, 1: 0.25}
    assert bench.errors == 1
    assert bench.thread.state == "ready"
    # The failed one, the probe that showed it works again, and the answer.
    assert bench.engine.forwards == 3
    bench.close()


@pytest.mark.parametrize("failure", ["raise", "nan"])
def test_the_second_failure_is_told_and_the_thread_goes_on(failure: str) -> None:
    bench = Bench(Faulty(failure, "", failure))

    async def both() -> dict[int, float]:
        with pytest.raises(EngineFailed, match="retry"):
            await bench.ask()
        return await bench.ask()

    assert asyncio.run(both()) == {0: 0.75, 1: 0.25}
    assert bench.errors == 2
    bench.close()


def test_only_the_images_that_gave_nan_are_computed_again() -> None:
    bench = Bench(Faulty("nan"), start=False)
    assert numbers(asyncio.run(bench.ask_together(4))) == [0, 1, 2, 3]
    assert bench.batches == [3, 1]
    assert bench.engine.sizes == [4, 1, 1]
    bench.close()


def test_what_failed_is_computed_before_what_came_later() -> None:
    bench = Bench(Faulty("raise"), start=False)
    answered: list[int] = []

    async def ask(value: int) -> None:
        await bench.ask(value)
        answered.append(value)

    async def all_of_them() -> None:
        asking = asyncio.gather(*map(ask, range(8)))
        await asyncio.sleep(0.05)
        bench.thread.start()
        await asking

    asyncio.run(all_of_them())
    assert answered == list(range(8))
    bench.close()


def test_it_is_not_ready_until_a_forward_succeeds_and_nobody_waits_for_long() -> None:
    bench = Bench(Faulty(*["raise"] * 10_000), rebuild=fails)

    async def fail() -> None:
        with pytest.raises(EngineFailed, match="engine is down"):
            await bench.ask()
        started = time.monotonic()
        with pytest.raises(EngineFailed, match="engine is down"):
            await bench.ask()  # Now it does not wait at all.
        assert time.monotonic() < started + 0.4

    asyncio.run(fail())
    assert bench.thread.state == "failed"
    assert bench.batcher.depth == 0
    bench.close()


def fails(kind: str | None = None) -> Warm:
    raise RuntimeError("no driver")


@pytest.fixture
def uncollected(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is left in a circle stays, as when another model becomes ready and freezes it."""
    monkeypatch.setattr("service.engines.cuda_graph.gc.collect", lambda: 0)
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("failure", ["raise", "raise later"])
def test_an_engine_that_cannot_be_probed_is_built_anew_without_holding_the_old_one(
    caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    caplog.set_level(logging.CRITICAL)  # Kept records hold tracebacks, and these the engine.
    broken = Faulty(*[failure] * 10_000)
    new = Faulty()
    old: list[weakref.ref[Warm]] = []
    kinds: list[str | None] = []

    def rebuild(kind: str | None) -> Warm:
        assert old[0]() is None
        kinds.append(kind)
        if len(kinds) < 3:
            raise RuntimeError("no driver")
        return new.warm()

    bench = Bench(broken, rebuild=rebuild)
    bench.until("ready")
    assert bench.thread.running is not None
    old.append(weakref.ref(bench.thread.running))
    assert asyncio.run(bench.ask()) == {0: 0.75, 1: 0.25}
    assert kinds == ["faulty"] * 3
    assert broken.forwards == 1 + len(recovery.PROBE_SECONDS)
    assert bench.ready == ["faulty"] * 2
    bench.close()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("lost", [False, True])
def test_a_thread_that_ends_gives_its_engines_memory_back(
    monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    bench = Bench(Faulty())
    bench.until("ready")
    assert bench.thread.running is not None
    engine, left = weakref.ref(bench.thread.running), list[Warm | None]()

    def give_back() -> None:
        left.append(engine())
        if lost:
            raise RuntimeError(POISON)

    monkeypatch.setattr(engine_thread, "give_memory_back", give_back)
    bench.close()
    assert left == [None]


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_batch_that_does_not_fit_is_computed_in_halves_and_no_larger_one_is_made(
    in_flight: int,
) -> None:
    engine = Faulty(memory=2, in_flight=in_flight)
    bench = Bench(engine, start=False)
    assert numbers(asyncio.run(bench.ask_together(16))) == list(range(16))
    assert bench.out_of_memory == in_flight  # as many as were under way
    assert bench.errors == 0
    assert (bench.thread.state, bench.ready) == ("ready", ["faulty"])
    assert bench.batches == [2] * 8
    assert engine.sizes.count(4) == in_flight
    assert bench.thread.running is not None
    assert list(bench.thread.running.buckets.seconds) == [1, 2]
    bench.close()


def test_one_image_that_does_not_fit_is_a_failure() -> None:
    bench = Bench(Faulty(memory=0), start=False, rebuild=fails)
    outcomes = asyncio.run(bench.ask_together(3))
    assert [type(outcome) for outcome in outcomes] == [EngineFailed] * 3
    assert bench.thread.state == "failed"
    assert "out of memory" in bench.thread.reason or "no driver" in bench.thread.reason
    bench.close()


@pytest.mark.parametrize("in_flight", [1, 2])
def test_nobody_waits_for_an_engine_that_hangs_and_it_serves_when_it_comes_back(
    in_flight: int,
) -> None:
    bench = Bench(Faulty("hang", in_flight=in_flight), start=False)

    async def hang() -> None:
        started = time.monotonic()
        outcomes = await bench.ask_together(9)
        assert {str(outcome) for outcome in outcomes} <= {
            "the engine hangs; retry",
            "the engine is down; retry",
        }
        assert bench.thread.state == "lost"
        assert "has not returned" in bench.thread.reason
        with pytest.raises(EngineFailed, match="engine is down"):
            await bench.ask()
        assert time.monotonic() < started + 10
        bench.engine.freed.set()
        bench.until("ready")
        assert numbers([await bench.ask(7)]) == [7]

    asyncio.run(hang())
    assert bench.errors == 1
    bench.close()


def test_while_an_engine_hangs_another_has_its_turn_on_the_device() -> None:
    device = DeviceShare()
    hung = Bench(Faulty("hang"), device=device)
    other = Bench(Faulty(), device=device)

    async def both() -> None:
        with pytest.raises(EngineFailed):
            await hung.ask()
        for value in range(5):
            assert numbers([await other.ask(value)]) == [value]
        hung.engine.freed.set()
        hung.until("ready")
        assert numbers(await asyncio.gather(hung.ask(3), other.ask(4))) == [3, 4]

    asyncio.run(both())
    hung.close()
    other.close()


def test_a_device_that_hangs_for_another_is_noticed_by_whoever_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.engines.turn.LONGEST_WAIT", 0.3)
    device, starting = DeviceShare(2), Tenant()
    bench = Bench(Faulty(), device=device)
    bench.until("ready")

    async def wait() -> None:
        with pytest.raises(EngineFailed):
            await bench.ask()
        assert bench.thread.state == "lost"
        assert "hangs" in bench.thread.reason

    with device.alone(starting):  # As a model that starts, and never ends to.
        asyncio.run(wait())
    bench.until("ready")
    assert asyncio.run(bench.ask()) == {0: 0.75, 1: 0.25}
    assert bench.tenant.in_flight == 0
    bench.close()


def test_after_an_error_that_poisons_the_process_nothing_is_tried_again() -> None:
    bench = Bench(Faulty(*["poison"] * 10_000), rebuild=fails)

    async def lose() -> None:
        for _ in range(2):
            with pytest.raises(EngineFailed, match="retry"):
                await bench.ask()

    asyncio.run(lose())
    bench.thread.join(20)
    assert not bench.thread.is_alive()
    assert bench.thread.state == "lost"
    assert bench.thread.reason == "the engine failed: CUDA error: device-side assert triggered"
    assert bench.engine.forwards == 1


def test_what_one_engine_fails_to_compute_another_of_the_same_queue_does() -> None:
    benches: list[Bench] = []

    def serves() -> bool:
        return any(bench.thread.state == "ready" for bench in benches)

    broken = Bench(Faulty(*["raise"] * 10_000), rebuild=fails, serves=serves, start=False)
    sound = Bench(Faulty(), batcher=broken.batcher, serves=serves, start=False)
    benches += [broken, sound]

    async def ask() -> None:
        broken.thread.start()
        first = asyncio.gather(*(broken.ask(value) for value in range(4)))
        await asyncio.to_thread(broken.until, "failed")
        sound.thread.start()
        assert numbers(await first) == [0, 1, 2, 3]
        await asyncio.sleep(2 * recovery.PATIENCE_SECONDS)
        assert numbers(await asyncio.gather(*map(broken.ask, range(20)))) == list(range(20))

    asyncio.run(ask())
    assert (broken.thread.state, sound.thread.state) == ("failed", "ready")
    broken.batcher.close()
    for bench in benches:
        bench.close()


def test_an_engine_that_does_not_start_is_said_to_have_failed_and_is_tried_again() -> None:
    may_start = threading.Event()

    def rebuild(kind: str | None) -> Warm:
        assert kind is None
        return engine.warm() if may_start.is_set() else fails()

    engine = Faulty()
    bench = Bench(engine, rebuild=rebuild, start=False)
    bench.builder.build_first = fails
    bench.thread.start()
    bench.until("failed")
    assert "no driver" in bench.thread.reason
    assert not bench.ready
    may_start.set()
    bench.until("ready")
    assert bench.ready == ["faulty"]
    bench.close()


@pytest.mark.parametrize("in_flight", [1, 2])
def test_every_caller_gets_its_own_answer_with_batches_in_flight(in_flight: int) -> None:
    bench = Bench(Faulty(in_flight=in_flight), start=False)

    async def ask_all() -> list[dict[int, float]]:
        asking = asyncio.gather(*(bench.ask(value) for value in range(60)))
        await asyncio.sleep(0.05)
        bench.thread.start()  # Now a queue waits for it.
        return await asking

    answers = asyncio.run(ask_all())
    assert [round(answer[0] * 100) for answer in answers] == list(range(60))
    assert bench.engine.most_flying == in_flight
    bench.close()


class Logged(Faulty):
    """Logs what it does."""

    def __init__(self) -> None:
        super().__init__(in_flight=2)
        self.log: list[str] = []

    def launch(
        self, images: Sequence[Image], size: int, tasks: Sequence[Task] = ()
    ) -> Callable[[], Ranking]:
        number = len(self.sizes)
        self.log.append(f"launch {number}")
        collect = super().launch(images, size, tasks)

        def logged() -> Ranking:
            self.log.append(f"collect {number}")
            return collect()

        return logged


def test_a_batch_is_answered_while_the_next_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Logged()
    bench = Bench(engine, start=False)
    finish = bench.batcher.finish

    def logged(batch: Sequence[Job[ImageInput, Row]], results: Sequence[Row]) -> None:
        engine.log.append(f"answer {len(batch)}, {engine.flying} in flight")
        finish(batch, results)

    monkeypatch.setattr(bench.batcher, "finish", logged)
    asyncio.run(bench.ask_together(16))
    assert engine.log == [
        "launch 0", "launch 1",
        "collect 0", "answer 4, 1 in flight", "launch 2",
        "collect 1", "answer 4, 1 in flight", "launch 3",
        "collect 2", "answer 4, 1 in flight",
        "collect 3", "answer 4, 0 in flight",
    ]  # fmt: skip
    bench.close()


class Crowd(Faulty):
    """Counts its batches in flight together with those of `others`."""

    def __init__(self, others: list[Crowd]) -> None:
        super().__init__(in_flight=2)
        self.others = others
        others.append(self)
        self.met: list[int] = []

    def launch(
        self, images: Sequence[Image], size: int, tasks: Sequence[Task] = ()
    ) -> Callable[[], Ranking]:
        collect = super().launch(images, size, tasks)
        self.met.append(sum(engine.flying for engine in self.others))

        def slowly() -> Ranking:
            time.sleep(0.001)  # The others launch theirs.
            return collect()

        return slowly


def test_two_models_have_two_batches_in_flight_on_a_device_and_what_is_measured_is_alone() -> None:
    device, crowd = DeviceShare(2), list[Crowd]()
    first = Bench(Crowd(crowd), device=device, start=False)
    disturbed: list[int] = []

    def measured() -> Warm:
        for _ in range(20):
            with device.alone(second.tenant):
                disturbed.append(sum(engine.flying for engine in crowd))
                time.sleep(0.001)
                disturbed.append(sum(engine.flying for engine in crowd))
        return better.warm()

    second = Bench(Crowd(crowd), device=device, start=False, improve=[measured])
    better = Crowd(crowd)
    better.name = "better"

    async def ask() -> None:
        asking = [asyncio.create_task(bench.ask_together(64)) for bench in (first, second)]
        for outcomes in await asyncio.gather(*asking):
            assert numbers(outcomes) == list(range(64))

    asyncio.run(ask())
    met = [count for engine in crowd for count in engine.met]
    assert max(met) == 2
    first.close()
    second.close()
    join("test/improve")
    assert disturbed == [0] * 40


def test_while_a_probe_hangs_in_a_turn_another_has_the_device() -> None:
    device = DeviceShare()
    engine = Faulty("raise", "hang")
    hung = Bench(engine, device=device, start=False)

    def probe() -> None:
        with device.alone(hung.tenant):
            engine.warm().probe()

    hung.builder.build_first = lambda: replace(engine.warm(), probe=probe)
    hung.thread.start()
    other = Bench(Faulty(), device=device)

    async def both() -> None:
        with pytest.raises(EngineFailed):
            await hung.ask()
        assert hung.thread.state == "lost"
        assert numbers([await other.ask(7)]) == [7]
        engine.freed.set()
        hung.until("ready")
        assert numbers(await asyncio.gather(hung.ask(3), other.ask(4))) == [3, 4]

    asyncio.run(both())
    hung.close()
    other.close()


def improving() -> tuple[Faulty, threading.Event, Bench]:
    """A better engine, what lets it take over, and the bench where another one serves first."""
    better = Faulty()
    better.name = "better"
    may_come = threading.Event()

    def improve() -> Warm:
        assert may_come.wait(20)
        return better.warm()

    return better, may_come, Bench(Faulty(), improve=[improve])


def test_a_better_engine_takes_over_and_no_request_is_lost() -> None:
    better, may_come, bench = improving()

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


def test_a_better_engine_takes_over_while_nobody_asks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    _, may_come, bench = improving()
    until(lambda: bench.ready == ["faulty"])
    may_come.set()
    until(lambda: bench.ready == ["faulty", "better"])
    assert bench.thread.running is not None
    assert bench.thread.running.engine.name == "better"
    assert "test: replaces faulty by better in" in caplog.text
    bench.close()


def test_a_better_engine_that_fails_leaves_the_one_that_serves() -> None:
    def fails() -> Warm:
        raise RuntimeError("no compiler")

    bench = Bench(Faulty(), improve=[fails])
    time.sleep(0.05)
    assert asyncio.run(bench.ask()) == {0: 0.75, 1: 0.25}
    assert bench.ready == ["faulty"]
    assert bench.thread.state == "ready"
    bench.close()


def test_a_bug_that_ends_the_thread_is_told_and_nobody_waits() -> None:
    """The engine process is then replaced, and one process is no longer live."""
    bench = Bench(Faulty("raise"), start=False)
    bench.bugs = [KeyError("a bug")]
    outcomes = asyncio.run(bench.ask_together(3))
    assert [str(outcome) for outcome in outcomes] == ["the engine's thread has ended; retry"] * 3
    bench.thread.join(20)
    assert not bench.thread.is_alive()
    assert bench.thread.state == "lost"
    assert "a bug ended the engine's thread: KeyError" in bench.thread.reason

    async def late() -> None:
        with pytest.raises(EngineFailed, match="engine is down"):
            await bench.ask()

    asyncio.run(late())


ALLOCATOR = "captures_underway.empty() INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp"


def keeps_memory(*texts: str) -> Callable[[], None]:
    """In the place of `give_memory_back`: it fails as often as there are texts."""
    failures = list(texts)

    def give_memory_back() -> None:
        if failures:
            raise RuntimeError(failures.pop(0))

    return give_memory_back


@pytest.mark.parametrize("in_flight", [1, 2])
def test_memory_that_cannot_be_freed_is_a_failure_like_another(
    in_flight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "give_memory_back", keeps_memory("the device is busy"))
    bench = Bench(Faulty(memory=2, in_flight=in_flight), start=False)
    assert sorted(numbers(asyncio.run(bench.ask_together(16)))) == list(range(16))
    assert bench.errors == 1
    assert bench.thread.state == "ready"
    bench.close()


@pytest.mark.parametrize("in_flight", [1, 2])
def test_an_allocator_that_is_broken_is_told_and_nobody_waits(
    in_flight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "give_memory_back", keeps_memory(*[ALLOCATOR] * 100))
    bench = Bench(Faulty(memory=2, in_flight=in_flight), start=False)
    outcomes = asyncio.run(bench.ask_together(16))
    assert {type(outcome) for outcome in outcomes} == {EngineFailed}
    assert bench.thread.state == "lost"
    assert "captures_underway" in bench.thread.reason
    bench.thread.join(20)
    assert not bench.thread.is_alive()


def test_memory_that_cannot_be_freed_delays_another_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_graph, "give_memory_back", keeps_memory("the device is busy"))
    sound = Faulty()
    bench = Bench(Faulty(*["raise"] * 4), rebuild=lambda kind: sound.warm())
    assert numbers([asyncio.run(bench.ask(7))]) == [7]
    assert sound.forwards == 1
    assert bench.thread.state == "ready"
    bench.close()


def test_an_allocator_that_is_broken_lets_no_other_engine_be_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_graph, "give_memory_back", keeps_memory(*[ALLOCATOR] * 100))
    bench = Bench(Faulty(*["raise"] * 4), rebuild=fails)

    async def ask() -> None:
        with pytest.raises(EngineFailed):
            await bench.ask()

    asyncio.run(ask())
    bench.thread.join(20)
    assert not bench.thread.is_alive()
    assert bench.thread.state == "lost"


def test_a_better_engine_that_breaks_the_device_leaves_no_engine_that_is_said_to_be_sound() -> None:
    def breaks() -> Warm:
        raise CaptureFailed("a CUDA graph could not be captured")

    bench = Bench(Faulty(), improve=[breaks, fails])
    bench.until("lost")
    assert "could not be captured" in bench.thread.reason
    assert numbers([asyncio.run(bench.ask(7))]) == [7]  # Until the process is replaced.
    assert bench.thread.state == "lost"
    bench.close()


def test_a_bug_while_a_call_is_given_up_keeps_nobody_waiting() -> None:
    device = DeviceShare()
    hung = Bench(Faulty("hang"), device=device)
    hung.bugs = [KeyError("a bug")]
    other = Bench(Faulty(), device=device)

    async def both() -> None:
        with pytest.raises(EngineFailed):
            await hung.ask()
        assert numbers([await other.ask(7)]) == [7]

    asyncio.run(both())
    assert hung.thread.state == "lost"
    hung.engine.freed.set()
    hung.close()
    other.close()


def test_a_model_that_has_ended_is_not_given_a_better_engine() -> None:
    building, ended = threading.Event(), threading.Event()
    built: list[str] = []

    def first() -> Warm:
        built.append("first")
        building.set()
        assert ended.wait(20)
        return Faulty().warm()

    def second() -> Warm:
        built.append("second")
        return Faulty().warm()

    bench = Bench(Faulty(), improve=[first, second])
    assert building.wait(20)
    bench.close()
    ended.set()
    join("test/improve")
    assert built == ["first"]
