"""The supervisor's children: started, watched, and restarted alone when they end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from service.runtime import essential
from service.workers import shared_metrics
from service.workers.heartbeat import BEAT_SECONDS, Heartbeats
from service.workers.process import ChildProcess, Role

log = logging.getLogger(__name__)
# Delays before restarts; a process that has served long starts again at the first.
BACKOFF_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0)
LONG_LIFE_SECONDS = 30.0
# In a row, of processes that did not serve that long: after so many, their device counts as broken.
MOST_RESTARTS = 5

# Starts a child's service and handles its messages until it ends.
Run = Callable[[ChildProcess], Awaitable[None]]


class Keeper:
    """Keeps the children running, until `stopping`.

    `folder`: shared by all processes; `inherited`: descriptors that each child gets; `patience`:
    seconds of silence after which a child is killed.
    """

    def __init__(
        self,
        folder: str,
        inherited: Sequence[int],
        heartbeats: Heartbeats,
        patience: float,
        stopping: asyncio.Event,
    ) -> None:
        self._folder = folder
        self._inherited = inherited
        self._heartbeats = heartbeats
        self._patience = patience
        self._stopping = stopping
        self._children: dict[ChildProcess, Role] = {}

    async def keep_running(
        self, role: Role, run: Run, broken: Callable[[str], object] | None = None
    ) -> int:
        """Restarts a process until the service stops; the exit status of the last one.

        `broken` is called with the last reason when `MOST_RESTARTS` in a row have failed, and for
        each that fails afterwards.
        """
        while True:
            role.serving_since, role.reason = None, ""
            status, end = await self._run_child(role, run)
            if self._stopping.is_set():
                return status
            if role.serving_since is not None and (
                time.monotonic() > role.serving_since + LONG_LIFE_SECONDS
            ):
                role.restarts = 0
            elif role.restarts >= MOST_RESTARTS and broken is not None:
                broken(role.reason or f"it {end}")
            delay = BACKOFF_SECONDS[min(role.restarts, len(BACKOFF_SECONDS) - 1)]
            role.restarts += 1
            log.error("%s %s; restarting it in %g s", role.name, end, delay)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
                return 0

    async def _run_child(self, role: Role, run: Run) -> tuple[int, str]:
        """Runs a child until it ends; its exit status, and how it ended."""
        try:
            child = await ChildProcess.start(role, self._folder, self._inherited)
        except OSError as error:
            return 1, f"cannot start: {error.strerror}"
        self._children[child] = role
        watching = essential(self._kill_when_silent(role, child), f"the watch of {role.name}")
        try:
            await run(child)
            status = await child.process.wait()
        finally:
            watching.cancel()
        child.disconnect()
        del self._children[child]
        self._heartbeats.clear(role.number)
        shared_metrics.remove_gauges(self._folder, role.key)
        return status, f"({child.process.pid}) ended with status {status}"

    async def _kill_when_silent(self, role: Role, child: ChildProcess) -> None:
        """Kills a child whose event loop has stopped, which it cannot notice itself."""
        silence = self._heartbeats.watch(role.number)
        while (seconds := silence.look()) < self._patience:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(BEAT_SECONDS)
        # At shutdown a front end's loop ends first, and has time to exit.
        if not self._stopping.is_set():
            log.error(
                "%s (%d) has not responded for %.0f s; killing it",
                role.name,
                child.process.pid,
                seconds,
            )
            role.reason = "it did not respond"
            child.kill()

    async def end(self) -> None:
        """Ends all children: the front ends need the engine processes until they have ended."""
        for module in ("front_end", "engine_process"):
            ending = [child for child, role in self._children.items() if role.module == module]
            await asyncio.gather(*(child.end() for child in ending))
