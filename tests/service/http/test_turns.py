from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from service.http import turns as module
from service.http.turns import (
    BUDGET_SECONDS,
    DRAIN_TURNS,
    IN_ORDER,
    REFUSE_SECONDS,
    REFUSING_SAMPLES,
    LoopTurns,
)
from service.metrics import Metrics
from tests.support.gated import gated, post


def run(test: Callable[[LoopTurns, Metrics], Coroutine[Any, Any, None]], **more: float) -> None:
    metrics = Metrics()

    async def limited() -> None:
        async with asyncio.timeout(60):
            await test(LoopTurns(metrics, **more), metrics)

    uvloop.run(limited())


def value(metrics: Metrics, sample: str) -> float:
    (line,) = [
        line for line in metrics.render().decode().splitlines() if line.startswith(f"{sample} ")
    ]
    return float(line.split()[-1])


class Holding:
    """A connection that is held: it notes its number, in so many seconds."""

    def __init__(self, number: int, order: list[int], seconds: float = 0.0) -> None:
        self._number, self._order, self._seconds = number, order, seconds

    def release(self) -> None:
        self._order.append(self._number)
        time.sleep(self._seconds)


def test_a_turn_parses_requests_until_its_budget_is_spent() -> None:
    async def test(turns: LoopTurns, _: Metrics) -> None:
        now = time.perf_counter()
        assert turns.read(now)
        assert turns.read(now + REFUSE_SECONDS / 2)
        assert not turns.read(now + 2 * REFUSE_SECONDS)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert turns.polled == now  # All that arrived before has been read.
        assert turns.read(time.perf_counter())  # Another turn.

    run(test)


def test_what_is_held_goes_first_and_each_turn_releases_its_budget() -> None:
    async def test(turns: LoopTurns, _: Metrics) -> None:
        order: list[int] = []
        for number in range(10):
            turns.hold(Holding(number, order, 0.6 * REFUSE_SECONDS))
        assert not turns.read(time.perf_counter())  # Who comes now waits behind them.
        await asyncio.sleep(0)
        assert len(order) <= 2
        turned = 0
        while len(order) < 10:
            turned += 1
            await asyncio.sleep(0)
        assert turned >= 4
        assert order == list(range(10))

    run(test)


def test_much_that_is_held_is_released_within_some_turns_whatever_it_takes() -> None:
    async def test(turns: LoopTurns, _: Metrics) -> None:
        order: list[int] = []
        for number in range(10 * DRAIN_TURNS):
            turns.hold(Holding(number, order, REFUSE_SECONDS))
        await asyncio.sleep(0)
        assert len(order) == 10

    run(test)


@pytest.mark.parametrize("kind", ["held", "starting"])
def test_a_bug_in_one_request_keeps_no_other_waiting(kind: str) -> None:
    class Broken:
        def release(self) -> None:
            raise ZeroDivisionError

    async def test(turns: LoopTurns, _: Metrics) -> None:
        bugs: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: bugs.append(context["exception"]))
        order: list[int] = []
        if kind == "held":
            turns.hold(Broken())
            turns.hold(Holding(1, order))
        else:
            for start in (lambda: None, Broken().release, lambda: order.append(1)):
                turns.start(start)
        while not order:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert [type(bug) for bug in bugs] == [ZeroDivisionError]

    run(test, request=BUDGET_SECONDS)


def test_the_newest_goes_first_only_while_requests_are_refused() -> None:
    async def released(turns: LoopTurns, count: int) -> list[int]:
        order: list[int] = []
        for number in range(count):
            turns.hold(Holding(number, order))
        while len(order) < count:  # noqa: ASYNC110
            await asyncio.sleep(0)
        return order

    async def test(turns: LoopTurns, metrics: Metrics) -> None:
        many = 2 * IN_ORDER
        assert await released(turns, many) == list(range(many))
        turns.refused()
        assert await released(turns, IN_ORDER) == list(range(IN_ORDER))
        order = await released(turns, many)
        # In turn with the oldest, so that nobody waits for ever.
        assert order[:4] == [many - 1, 0, many - 2, 1]
        assert sorted(order) == list(range(many))
        turns.refused()
        slow: list[int] = []  # One in a turn.
        for number in range(many):
            turns.hold(Holding(number, slow, 2 * REFUSE_SECONDS))
        while len(slow) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert slow[:4] == [many - 1, 0, many - 2, 1]
        while len(slow) < many:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for _sample in range(REFUSING_SAMPLES):
            turns._sample(time.perf_counter())
        assert await released(turns, many) == list(range(many))

    run(test)


def test_no_more_is_started_in_a_turn_than_it_has_time_for() -> None:
    async def test(turns: LoopTurns, _: Metrics) -> None:
        started: list[int] = []
        turns.read(time.perf_counter())
        for number in range(10):
            turns.start(lambda number=number: started.append(number))  # type: ignore[misc]
        assert started == [0, 1, 2, 3]
        await asyncio.sleep(0)
        assert len(started) <= 8
        while len(started) < 10:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert started == list(range(10))

    run(test, request=BUDGET_SECONDS / 4)


def test_one_in_eight_requests_is_timed() -> None:
    turns = LoopTurns(Metrics())
    took = [turns.timed() for _ in range(24)]
    assert sum(each is not None for each in took) == 3
    for _ in range(200):
        turns._took(0.002)
    assert turns.request == pytest.approx(0.002, rel=0.01)


def test_a_late_loop_is_noticed_and_forgotten() -> None:
    async def test(turns: LoopTurns, metrics: Metrics) -> None:
        watching = asyncio.get_running_loop().create_task(turns.watch())
        await asyncio.sleep(0.05)
        time.sleep(0.3)  # noqa: ASYNC251
        while turns.delay < 0.05:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert value(metrics, "resnet_serve_loop_longest_turn_seconds") >= 0.25
        assert value(metrics, "resnet_serve_loop_delay_seconds_count") >= 1
        assert value(metrics, "resnet_serve_loop_delay_seconds_sum") >= 0.25
        while turns.delay > 0.02:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        watching.cancel()

    run(test)


def test_the_longest_turn_is_reported_long_enough_to_be_scraped() -> None:
    metrics = Metrics()
    turns = LoopTurns(metrics)
    now = turns._sampled = turns._reported = 1000.0
    shown = []
    late = 5.0
    for _ in range(70):
        now += module.SAMPLE_SECONDS + late
        turns._sample(now)
        shown.append((now, value(metrics, "resnet_serve_loop_longest_turn_seconds")))
        now, late = now + 1.0 - module.SAMPLE_SECONDS, 0.0
        turns._sampled = now
    seen = [at - 1000.0 for at, seconds in shown if seconds > 4.9]
    assert module.REPORT_SECONDS <= max(seen) <= 3 * module.REPORT_SECONDS
    assert shown[-1][1] == pytest.approx(0.0, abs=1e-6)


def test_turns_reads_and_accepts_are_counted() -> None:
    with gated() as service:
        for _ in range(5):
            assert service.connect().send(post()).answer().status == 200
        service.until(
            lambda: (
                value(service.metrics, "resnet_serve_loop_accepts_total") == 5
                and value(service.metrics, "resnet_serve_loop_reads_total") >= 5
            )
        )
        turns = value(service.metrics, "resnet_serve_loop_turns_total")
        assert 1 <= turns <= value(service.metrics, "resnet_serve_loop_reads_total")
        assert value(service.metrics, "resnet_serve_backlog_seconds_count") == 5


def test_of_requests_that_arrive_at_once_not_all_start_in_one_turn() -> None:
    """Else none of them has its response before all of them have been begun."""
    with gated() as service:
        clients = [service.connect() for _ in range(200)]
        for client in clients[:20]:  # So that the loop knows what a request takes.
            assert client.send(post()).answer().status == 200
        service.on_loop(lambda: setattr(service.turns, "request", 0.0004))
        most = [0]
        before = service.metrics.in_flight._value.get
        with service.stalled():
            for client in clients:
                client.send(post())

            def watch() -> None:
                most[0] = max(most[0], int(before()))
                if not stopped:
                    service.loop.call_soon(watch)

            stopped: list[bool] = []
            service.loop.call_soon_threadsafe(watch)
        statuses = [client.answer().status for client in clients]
        stopped.append(True)
        assert set(statuses) <= {200, 429}
        assert statuses.count(200) > 20
        assert 0 < most[0] < 150
        service.until(service.idle)
