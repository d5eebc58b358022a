"""Threads of one kind of work: how many there are, and what waits for them."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from service.inference.lane import Lane


def test_results_and_errors_come_back() -> None:
    async def scene() -> None:
        lane = Lane(1, "test")
        assert await lane.run(int, "12", base=3) == 5
        with pytest.raises(ValueError, match="invalid literal"):
            await lane.run(int, "x")
        lane.close()

    asyncio.run(scene())


def test_no_more_work_runs_at_once_than_there_are_threads() -> None:
    names: set[str] = set()

    def work() -> None:
        names.add(threading.current_thread().name)

    async def scene() -> None:
        lane = Lane(2, "test")
        await asyncio.gather(*(lane.run(work) for _ in range(50)))
        lane.close()

    asyncio.run(scene())
    assert names <= {"test_0", "test_1"}


def test_who_leaves_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        lane = Lane(1, "test")
        begun, released = threading.Event(), threading.Event()

        def fail() -> None:
            begun.set()
            released.wait()
            raise ValueError

        tasks = [asyncio.ensure_future(lane.run(fail)) for _ in range(2)]
        await asyncio.to_thread(begun.wait)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=10)
        assert all(task.cancelled() for task in tasks)
        assert lane._pool._work_queue.empty()
        released.set()
        assert await lane.run(int) == 0
        lane.close()

    asyncio.run(scene())
    gc.collect()
    assert not caplog.records
