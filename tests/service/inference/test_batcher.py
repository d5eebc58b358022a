from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.errors import DeadlineExceeded, EngineFailed, QueueFull
from service.inference.batcher import Batcher
from service.inference.jobs import Job, Priority
from service.inference.pace import CERTAIN, Load
from service.inference.tasks import CLASSIFY, Explain, Task

Numbers = Batcher[int, int]
FIRST, NORMAL, LAST = Priority.FIRST, Priority.NORMAL, Priority.LAST
ORDER = (NORMAL, LAST, FIRST, NORMAL, FIRST)


def make(max_jobs: int = 8, max_bytes: int = 1000, max_delay: float = 0.0) -> Numbers:
    return Batcher(max_jobs=max_jobs, max_bytes=max_bytes, max_delay=max_delay)


def admit(
    batcher: Numbers, cost: int, task: Task = CLASSIFY, priority: Priority = Priority.NORMAL
) -> Job[int, int]:
    job: Job[int, int] = Job(task, priority)
    batcher.admit(job, cost)
    return job


def submit(batcher: Numbers, payload: int, cost: int = 1) -> Job[int, int]:
    job = admit(batcher, cost)
    batcher.submit(job, payload, cost)
    return job


def next_batch(batcher: Numbers, at_most: int) -> list[Job[int, int]]:
    """As an engine's thread takes it; empty once closed and drained."""
    alone = threading.current_thread() is threading.main_thread()
    if alone:
        assert batcher._waiting or batcher._closed, "this thread would wait for itself"
    while batcher.wait(at_most):
        if batch := batcher.take(lambda waiting: min(waiting, at_most)):
            return batch
        assert not alone, "only other engines could have taken what was there"
    return []


def payloads(batch: list[Job[int, int]]) -> list[int | None]:
    return [job.payload for job in batch]


async def answer(job: Job[int, int]) -> int:
    """What a job was answered by now, by this thread."""
    for _ in range(2):
        await asyncio.sleep(0)
    assert job.future.done(), "it would wait for ever"
    return await job.future


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        faults: list[dict[str, Any]] = []
        task = asyncio.ensure_future(test())

        def failed(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            faults.append(context)
            task.cancel()

        # What fails while it delivers would have its callers wait for ever.
        asyncio.get_running_loop().set_exception_handler(failed)
        async with asyncio.timeout(20):
            await asyncio.wait([task])
        assert faults == []
        await task

    asyncio.run(bounded())


class Clock:
    """What stands for `time.perf_counter`: it goes only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("time.perf_counter", made)
    return made


def compute(batcher: Numbers, clock: Clock, count: int, seconds: float) -> None:
    """Takes a batch of `count`, and finishes it `seconds` later."""
    batch = batcher.take(lambda _: count)
    assert len(batch) == count
    clock.now += seconds
    batcher.finish(batch, [0] * count)


def test_a_batch_is_what_waits_in_the_order_of_arrival_up_to_the_limit() -> None:
    async def test() -> None:
        batcher = make()
        for number in range(5):
            submit(batcher, number)
        assert payloads(next_batch(batcher, 3)) == [0, 1, 2]
        assert payloads(next_batch(batcher, 3)) == [3, 4]

    run(test)


def test_priorities_come_first_and_what_was_begun_before_them() -> None:
    async def test() -> None:
        batcher = make(16)
        for number, priority in enumerate(ORDER):
            job = admit(batcher, 1, priority=priority)
            batcher.submit(job, number, 1)
        begun = next_batch(batcher, 2)
        assert payloads(begun) == [2, 4]
        late = admit(batcher, 1, priority=Priority.FIRST)
        batcher.submit(late, 5, 1)
        batcher.retry(begun, EngineFailed("once", retry_after=1.0))
        (first,) = next_batch(batcher, 1)
        assert first.payload == 2
        assert payloads(next_batch(batcher, 9)) == [4, 5, 0, 3, 1]

    run(test)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 32])
@pytest.mark.parametrize(
    ("waiting", "shares"),
    [
        ((FIRST, NORMAL), [0.75, 0.25]),
        ((FIRST, LAST), [0.75, 0.25]),
        ((NORMAL, LAST), [0.75, 0.25]),
        ((FIRST, NORMAL, LAST), [0.75, 0.1875, 0.0625]),
    ],
)
def test_no_priority_starves_a_lower_one(
    size: int, waiting: tuple[Priority, ...], shares: list[float]
) -> None:
    """Whatever is computed, another of the same priority takes its place at once."""

    async def test() -> None:
        batcher = make(1000)

        def fill(priority: Priority) -> None:
            batcher.submit(admit(batcher, 0, priority=priority), int(priority), 0)

        for priority in waiting:
            for _ in range(64):
                fill(priority)
        computed: list[int] = []
        while len(computed) < 192:
            for job in next_batch(batcher, size):
                computed.append(job.payload or 0)
                fill(job.priority)
        batch = 32
        for start in range(0, 192, batch):
            lower = [each for each in computed[start : start + batch] if each != waiting[0]]
            assert len(lower) >= batch // 4
        counts = [computed.count(priority) for priority in waiting]
        assert counts == [pytest.approx(192 * share, abs=1) for share in shares]

    run(test)


def test_with_a_delay_the_oldest_counts_whatever_its_priority() -> None:
    async def test() -> None:
        batcher = make(max_delay=0.2)
        oldest = admit(batcher, 1, priority=Priority.LAST)
        batcher.submit(oldest, 1, 1)
        await asyncio.sleep(0.15)
        batcher.submit(admit(batcher, 1, priority=Priority.FIRST), 2, 1)
        assert payloads(next_batch(batcher, 8)) == [2, 1]
        assert oldest.started - oldest.admitted >= 0.2

    run(test)


def test_results_reach_their_own_callers_with_clock_and_batch_size() -> None:
    async def test() -> None:
        batcher = make()
        jobs = [submit(batcher, number) for number in range(3)]

        def compute() -> None:
            batch = next_batch(batcher, 8)
            batcher.finish(batch, [-(job.payload or 0) for job in batch])

        computing = asyncio.to_thread(compute)
        *answers, _ = await asyncio.gather(*(job.future for job in jobs), computing)
        assert answers == [0, -1, -2]
        for job in jobs:
            assert job.batch_size == 3
            assert job.admitted <= job.started <= job.finished

    run(test)


def test_the_count_is_bounded_from_admission_to_computation() -> None:
    async def test() -> None:
        batcher = make(max_jobs=2)
        first = admit(batcher, 1)
        submit(batcher, 1)
        with pytest.raises(QueueFull, match="2 images waiting"):
            admit(batcher, 1)
        next_batch(batcher, 1)
        assert batcher.depth == 1
        submit(batcher, 2)
        first.future.cancel()
        await asyncio.sleep(0)
        submit(batcher, 3)
        assert batcher.depth == 2

    run(test)


def test_bytes_are_bounded_and_change_from_body_to_pixels() -> None:
    async def test() -> None:
        batcher = make(max_bytes=100)
        job = admit(batcher, 80)
        with pytest.raises(QueueFull):
            batcher.check(30)
        batcher.submit(job, 1, 20)
        batcher.check(80)
        with pytest.raises(QueueFull):
            batcher.check(81)
        next_batch(batcher, 1)
        batcher.check(100)

    run(test)


def test_a_caller_who_left_is_dropped_and_frees_the_place() -> None:
    async def test() -> None:
        batcher = make(max_jobs=2)
        gone, stays = submit(batcher, 1), submit(batcher, 2)
        gone.future.cancel()
        await asyncio.sleep(0)
        assert batcher.depth == 1
        assert next_batch(batcher, 8) == [stays]

    run(test)


def test_a_caller_who_left_while_decoding_is_never_queued() -> None:
    async def test() -> None:
        batcher = make()
        job = admit(batcher, 1)
        job.future.cancel()
        await asyncio.sleep(0)
        batcher.submit(job, 1, 1)
        submit(batcher, 2)
        assert payloads(next_batch(batcher, 8)) == [2]

    run(test)


def test_a_caller_who_left_while_computing_harms_nobody() -> None:
    async def test() -> None:
        batcher = make()
        gone, stays = submit(batcher, 1), submit(batcher, 2)
        batch = next_batch(batcher, 8)
        gone.future.cancel()
        batcher.finish(batch, [10, 20])
        assert await answer(stays) == 20

    run(test)


def test_what_left_while_an_engine_waited_for_its_turn_is_not_taken() -> None:
    async def test() -> None:
        batcher = make()
        gone = submit(batcher, 1)
        assert batcher.wait(8)
        gone.future.cancel()
        await asyncio.sleep(0)
        assert batcher.take(lambda waiting: waiting) == []

    run(test)


def test_the_engine_decides_how_many_of_those_that_wait_it_takes() -> None:
    async def test() -> None:
        batcher = make()
        for number in range(5):
            submit(batcher, number)
        assert payloads(batcher.take({5: 4}.__getitem__)) == [0, 1, 2, 3]
        assert payloads(batcher.take({1: 1}.__getitem__)) == [4]

    run(test)


def test_a_failure_reaches_every_caller_of_the_batch() -> None:
    async def test() -> None:
        batcher = make()
        jobs = [submit(batcher, 1), submit(batcher, 2)]
        batcher.fail(next_batch(batcher, 8), EngineFailed("it failed", 1))
        for job in jobs:
            with pytest.raises(EngineFailed, match="it failed"):
                await answer(job)

    run(test)


def test_a_delay_waits_for_company_but_no_longer(clock: Clock) -> None:
    async def test() -> None:
        batcher = make(max_delay=0.15)
        submit(batcher, 1)
        taken: list[list[int | None]] = []
        engine = threading.Thread(target=lambda: taken.append(payloads(next_batch(batcher, 3))))
        engine.start()
        submit(batcher, 2)
        assert taken == []
        clock.now += 0.15
        await asyncio.to_thread(engine.join)
        assert taken == [[1, 2]]

    run(test)


def test_a_full_batch_does_not_wait_for_the_delay() -> None:
    async def test() -> None:
        batcher = make(max_delay=600)
        submit(batcher, 1)
        submit(batcher, 2)
        assert payloads(next_batch(batcher, 2)) == [1, 2]

    run(test)


def test_without_a_delay_an_idle_engine_takes_one_image_at_once() -> None:
    async def test() -> None:
        batcher = make()
        taken: list[list[int | None]] = []
        engine = threading.Thread(target=lambda: taken.append(payloads(next_batch(batcher, 8))))
        engine.start()
        submit(batcher, 1)
        await asyncio.to_thread(engine.join)
        assert taken == [[1]]

    run(test)


def test_closing_lets_what_waits_be_computed_and_then_ends_every_engine() -> None:
    async def test() -> None:
        batcher = make()
        for number in range(3):
            submit(batcher, number)
        batcher.close()
        assert payloads(next_batch(batcher, 2)) == [0, 1]
        assert payloads(next_batch(batcher, 2)) == [2]
        assert next_batch(batcher, 2) == []
        idle = threading.Thread(target=next_batch, args=(batcher, 2))
        idle.start()
        await asyncio.to_thread(idle.join)

    run(test)


def test_several_engines_share_one_queue_and_compute_each_job_once() -> None:
    async def test() -> None:
        batcher = make(max_jobs=500)

        def engine() -> None:
            while batch := next_batch(batcher, 4):
                time.sleep(0.0005)
                batcher.finish(batch, [job.payload or 0 for job in batch])

        engines = [asyncio.ensure_future(asyncio.to_thread(engine)) for _ in range(3)]
        answers = asyncio.gather(*(submit(batcher, number).future for number in range(300)))
        try:
            # Until there are all, or an engine has failed, which may only end.
            both: set[asyncio.Future[Any]] = {answers, *engines}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            assert answers.done()
            assert await answers == list(range(300))
        finally:
            batcher.close()
        await asyncio.gather(*engines)
        assert batcher.depth == 0

    run(test)


def test_who_cannot_be_served_in_time_is_refused_at_once() -> None:
    async def test() -> None:
        batcher = make()
        submit(batcher, 0)
        batcher.check(load=Load(0.001))  # No engine has said how long it takes.
        batcher.pace.measured({1: 1.0})
        submit(batcher, 1)
        enough = 3.0 / CERTAIN + 0.01
        with pytest.raises(QueueFull, match="may need 4286 ms, longer than the 4200 ms"):
            batcher.check(load=Load(4.2))
        batcher.check(load=Load(enough))
        with pytest.raises(QueueFull):
            batcher.check(load=Load(enough, entering=1))  # Who was let in before it counts.
        with pytest.raises(QueueFull):
            batcher.check(load=Load(enough, spent=0.1))
        with pytest.raises(QueueFull):
            batcher.check(load=Load(enough, on_loop=4.0))
        computing = next_batch(batcher, 2)
        with pytest.raises(QueueFull):
            batcher.check(load=Load(4.2))  # What is being computed counts.
        batcher.fail(computing, EngineFailed("retry", 1.0))
        batcher.check(load=Load(0.001))  # Nobody is before it.
        await asyncio.gather(*(job.future for job in computing), return_exceptions=True)

    run(test)


def test_what_is_computed_and_not_delivered_yet_keeps_nobody_out(clock: Clock) -> None:
    """The engine idles meanwhile: only the event loop is behind."""

    async def test() -> None:
        batcher = make()
        batcher.pace.measured({1: 1.0})
        job = submit(batcher, 0)
        compute(batcher, clock, 1, 1.0)
        assert not job.future.done()
        batcher.check(load=Load(0.1))

    run(test)


def test_a_job_whose_deadline_has_passed_is_failed_and_not_computed(clock: Clock) -> None:
    async def test() -> None:
        batcher = make()
        late: Job[int, int] = Job(deadline=clock.now + 1.0)
        batcher.admit(late, 1)
        batcher.submit(late, 7, 1)
        submit(batcher, 8)
        clock.now += 1.0
        assert payloads(next_batch(batcher, 8)) == [8]
        with pytest.raises(DeadlineExceeded):
            await answer(late)
        assert batcher.depth == 0

    run(test)


def test_a_batch_that_failed_waits_in_front_again_but_once() -> None:
    async def test() -> None:
        batcher = make(max_jobs=2)
        first = [submit(batcher, number, cost=10) for number in range(2)]
        failed = next_batch(batcher, 2)
        later = [submit(batcher, number, cost=10) for number in (2, 3)]
        batcher.retry(failed, EngineFailed("again", 1.0))
        assert batcher.depth == 4  # Whoever was admitted is not refused ...
        with pytest.raises(QueueFull):
            admit(batcher, 1)  # ... and others are.
        batch = next_batch(batcher, 3)
        assert payloads(batch) == [0, 1, 2]
        batcher.retry(batch, EngineFailed("again", 1.0))
        for job in first:
            with pytest.raises(EngineFailed, match="again"):
                await answer(job)
        batch = next_batch(batcher, 3)
        assert payloads(batch) == [2, 3]
        batcher.finish(batch, [20, 30])
        assert [await answer(job) for job in later] == [20, 30]
        await asyncio.sleep(0)  # Places come back after the futures.
        assert (batcher.depth, batcher._bytes, len(batcher._computing)) == (0, 0, 0)

    run(test)


def test_a_failed_job_whose_caller_left_does_not_wait_again() -> None:
    async def test() -> None:
        batcher = make()
        jobs = [submit(batcher, number) for number in range(4)]
        failed = next_batch(batcher, 4)
        jobs[0].future.cancel()
        assert not batcher.withdraw(jobs[1])  # Too late: it computed.
        batcher.retry(failed, EngineFailed("again", 1.0))
        with pytest.raises(EngineFailed):
            await answer(jobs[1])
        assert batcher.withdraw(jobs[2])
        jobs[2].future.cancel()
        assert payloads(next_batch(batcher, 4)) == [3]
        await asyncio.sleep(0)
        assert batcher._bytes == 0

    run(test)


def test_while_suspended_nobody_waits() -> None:
    async def test() -> None:
        batcher = make()
        waiting, decoding = submit(batcher, 1), admit(batcher, 1)
        batcher.suspend("down", unless=lambda: True)
        assert batcher.depth == 2
        batcher.suspend("down", unless=lambda: False)
        assert batcher.take(lambda number: number) == []  # An engine that just comes is too late.
        batcher.submit(decoding, 2, 1)
        for job in (waiting, decoding, submit(batcher, 3)):
            with pytest.raises(EngineFailed, match="down"):
                await answer(job)
        await asyncio.sleep(0)  # Places come back after the futures.
        assert (batcher.depth, batcher._bytes, len(batcher._computing)) == (0, 0, 0)
        batcher.resume()
        assert submit(batcher, 4).payload == 4
        assert payloads(next_batch(batcher, 8)) == [4]

    run(test)


def test_the_time_of_an_outage_does_not_count_as_that_of_jobs(clock: Clock) -> None:
    async def test() -> None:
        batcher = make()
        batcher.pace.measured({1: 0.25})
        submit(batcher, 1)
        batch = next_batch(batcher, 1)
        clock.now += 60.0
        batcher.retry(batch, EngineFailed("again", 1.0))
        batcher.resume()
        compute(batcher, clock, 1, 0.25)
        assert batcher.pace.slowdown == 1.0

    run(test)


def test_a_job_is_what_was_asked_for_and_has_nothing_yet(clock: Clock) -> None:
    async def test() -> None:
        batcher = make()
        job = admit(batcher, 30)
        assert (job.cost, job.task, job.priority) == (30, CLASSIFY, NORMAL)
        assert (job.payload, job.batch_size, job.final) == (None, 0, False)
        assert (job.admitted, job.decoding, job.decoded) == (1000, 0, 0)
        assert (job.started, job.finished) == (0, 0)
        other = admit(batcher, 1, Explain(), Priority.LAST)
        assert (other.task, other.priority) == (Explain(), Priority.LAST)
        clock.now = 1002.0
        batcher.submit(job, 5, 40)
        assert (job.payload, job.cost, job.admitted) == (5, 40, 1000)
        compute(batcher, clock, 1, 3.0)
        assert await answer(job) == 0
        assert (job.batch_size, job.started, job.finished) == (1, 1002, 1005)

    run(test)


def test_a_queue_takes_all_that_fits_and_not_one_job_or_byte_more() -> None:
    async def test() -> None:
        batcher = make(max_jobs=2, max_bytes=100)
        batcher.check(100)
        with pytest.raises(QueueFull, match="0 images waiting"):
            batcher.check(101)
        admit(batcher, 100)
        batcher.check()  # What has no bytes yet fits.
        admit(batcher, 0)
        with pytest.raises(QueueFull, match="2 images waiting"):
            batcher.check()

    run(test)


@pytest.mark.parametrize(
    ("waiting", "seconds", "after"),
    [(0, 9.0, 1), (1, 0.1, 1), (3, 0.7, 3), (3, 1.0, 3), (3, 1.01, 4)],
)
def test_who_is_refused_may_come_back_when_the_queue_has_drained(
    waiting: int, seconds: float, after: float
) -> None:
    """In whole seconds, as HTTP has it, and never at once."""

    async def test() -> None:
        batcher = make()
        batcher.pace.measured({1: seconds})
        for number in range(waiting):
            submit(batcher, number)
        with pytest.raises(QueueFull) as refused:
            batcher.check(1001)
        assert refused.value.retry_seconds() == after

    run(test)


def test_only_the_engines_own_time_says_how_fast_it_is(clock: Clock) -> None:
    async def test() -> None:
        batcher = make(max_delay=0.5)
        batcher.pace.measured({1: 1.0, 2: 2.0})
        for number in range(4):
            submit(batcher, number)
        clock.now += 2.0
        # Two seconds waiting, of which half a second was for company, and 2.5 of computing.
        compute(batcher, clock, 2, 2.5)
        assert batcher.pace.slowdown == pytest.approx(0.8 + 0.2 * 4.0 / 2.0)
        # The others came long before; they had their turn when the first two were finished.
        compute(batcher, clock, 2, 4.0)
        assert batcher.pace.slowdown == pytest.approx(0.8 * 1.2 + 0.2 * 2.0)
        # Nobody was there for an hour, and then one who waited for company, and missed none.
        clock.now += 3600
        submit(batcher, 4)
        clock.now += 0.1
        compute(batcher, clock, 1, 1.5)
        assert batcher.pace.slowdown == pytest.approx(0.8 * 1.36 + 0.2 * 1.5)

    run(test)


def test_a_delay_ends_when_the_oldest_has_waited_for_so_long(clock: Clock) -> None:
    async def test() -> None:
        batcher = make(max_delay=0.5)
        submit(batcher, 1)
        clock.now += 0.25
        submit(batcher, 2)
        assert batcher._delay_left(3) == 0.25
        assert batcher._delay_left(2) == 0  # They are as many as there is room for.
        clock.now += 0.25
        assert batcher.wait(3)
        clock.now -= 0.25
        batcher.close()
        assert batcher.wait(3)  # No company will come.

    run(test)


def test_an_engine_is_asked_only_about_those_that_wait() -> None:
    async def test() -> None:
        asked: list[int] = []
        batcher = make()

        def all_of(waiting: int) -> int:
            asked.append(waiting)
            return waiting

        assert batcher.take(all_of) == []
        submit(batcher, 1)
        assert payloads(batcher.take(all_of)) == [1]
        assert asked == [1]

    run(test)


def test_what_cannot_wait_fails_for_a_second_and_says_why() -> None:
    async def test() -> None:
        batcher = make()
        jobs = [submit(batcher, 1), admit(batcher, 1)]
        batcher.suspend("down for good", unless=lambda: False)
        batcher.submit(jobs[1], 2, 1)
        for job in jobs:
            with pytest.raises(EngineFailed, match=r"^down for good$") as failed:
                await answer(job)
            assert failed.value.retry_after == 1

    run(test)


def test_what_is_tried_again_holds_its_bytes_again() -> None:
    async def test() -> None:
        batcher = make(max_bytes=100)
        submit(batcher, 1, cost=60)
        failed = next_batch(batcher, 1)
        batcher.check(100)
        batcher.retry(failed, EngineFailed("again", 1.0))
        batcher.check(40)
        with pytest.raises(QueueFull):
            batcher.check(41)

    run(test)


def test_who_computes_longer_than_the_service_lives_delivers_to_nobody() -> None:
    batches: list[list[Job[int, int]]] = []
    batcher = make()

    async def test() -> None:
        submit(batcher, 1)
        batches.append(next_batch(batcher, 1))

    run(test)
    batcher.finish(batches[0], [1])
    batcher.fail(batches[0], EngineFailed("late", 1.0))
    assert not batches[0][0].future.done()


def test_a_delay_is_none_unless_it_is_asked_for() -> None:
    assert Batcher[int, int](max_jobs=1, max_bytes=1).max_delay == 0
