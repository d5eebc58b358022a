"""Work in a thread that the end of the process does not wait for, unlike asyncio's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_daemon(work: Callable[[], T]) -> T:
    """What `work` gives. Cancelling gives up waiting, not the work."""
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

    threading.Thread(target=run, name="load", daemon=True).start()
    return await done


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)
