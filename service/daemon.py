"""Work in a thread that the end of the process does not wait for, unlike asyncio's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, MutableSet
from typing import TypeVar

T = TypeVar("T")


async def in_daemon(work: Callable[[], T], threads: MutableSet[threading.Thread]) -> T:
    """What `work` gives; its thread is one of `threads`. Cancelling gives up waiting only."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(deliver: Callable[[], None]) -> None:
        if not done.done():
            deliver()

    def run() -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            failure = error
            _call(loop, lambda: settle(lambda: done.set_exception(failure)))
        else:
            _call(loop, lambda: settle(lambda: done.set_result(result)))

    thread = threading.Thread(target=run, name="load", daemon=True)
    threads.add(thread)
    thread.start()
    return await done


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)
