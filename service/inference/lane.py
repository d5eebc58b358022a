"""Threads that are kept for one kind of work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """Runs functions in `threads` threads, so that neither the event loop nor other kinds of work
    wait for them.

    Work waits for a thread here, not in the pool, which would keep the data of disconnected clients
    until a thread is free.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._free = asyncio.Semaphore(threads)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `work`, computed in a thread; raises what it raises.

        Cancelling stops the wait for a thread; work that has begun is finished.
        """
        await self._free.acquire()
        running = asyncio.get_running_loop().run_in_executor(
            self._pool, lambda: work(*args, **kwargs)
        )
        running.add_done_callback(self._ended)
        return await asyncio.shield(running)

    def _ended(self, running: asyncio.Future[T]) -> None:
        self._free.release()
        if not running.cancelled():
            running.exception()  # Else asyncio logs it if the client has disconnected.

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
