"""When a process that ends again and again counts as broken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.workers import keeper as module
from service.workers.heartbeat import Heartbeats
from service.workers.keeper import LONG_LIFE_SECONDS, MOST_RESTARTS, Keeper
from service.workers.process import ChildProcess, Role


class Ended:
    """Stands for a process that has ended."""

    def __init__(self) -> None:
        self.process = SimpleNamespace(pid=7, wait=self._wait)

    async def _wait(self) -> int:
        return 1

    def disconnect(self) -> None:
        pass


class Silences:
    """Stands for heartbeats: nobody is silent."""

    def watch(self, number: int) -> Any:
        return SimpleNamespace(look=lambda: 0.0)

    def clear(self, number: int) -> None:
        pass


def broken_after(
    monkeypatch: pytest.MonkeyPatch, lives: Sequence[Callable[[Role], object]]
) -> tuple[list[tuple[int, str]], int]:
    """What is told while processes live these lives: after how many, and why; and how many began
    in all."""
    role = Role("the engine process", "k", "engine_process", cast("Any", None), 1)
    told: list[tuple[int, str]] = []
    begun = 0
    monkeypatch.setattr(module, "BACKOFF_SECONDS", (0.0, 0.001))

    async def start(*_: object) -> Ended:
        return Ended()

    monkeypatch.setattr(ChildProcess, "start", start)

    async def test() -> None:
        stopping = asyncio.Event()
        heartbeats = cast("Heartbeats", Silences())
        keeper = Keeper("/nowhere", [], heartbeats, 10.0, stopping)

        async def live(child: ChildProcess) -> None:
            nonlocal begun
            begun += 1
            lives[begun - 1](role)
            if begun == len(lives):
                stopping.set()

        await keeper.keep_running(role, live, lambda reason: told.append((begun, reason)))

    asyncio.run(test())
    return told, begun


def fails(role: Role) -> None:
    role.reason = "no device"


def serves_briefly(role: Role) -> None:
    role.serves()


def serves_long(role: Role) -> None:
    role.serves()
    assert role.serving_since is not None
    role.serving_since -= LONG_LIFE_SECONDS + 1


def test_after_five_restarts_in_which_it_did_not_serve_it_is_broken_and_still_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lives = [fails] * (MOST_RESTARTS + 3)
    told, begun = broken_after(monkeypatch, lives)
    first = 1 + MOST_RESTARTS
    assert told == [(first, "no device"), (first + 1, "no device")]
    assert begun == len(lives)
    assert MOST_RESTARTS == 5


def test_a_process_that_served_only_briefly_has_failed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    told, _ = broken_after(monkeypatch, [serves_briefly] * (MOST_RESTARTS + 2))
    assert told == [(1 + MOST_RESTARTS, "it (7) ended with status 1")]


def test_who_has_served_long_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    again = [fails] * MOST_RESTARTS
    told, _ = broken_after(monkeypatch, [serves_long, *again[1:], serves_long, *again, fails])
    assert told == [(2 * MOST_RESTARTS + 1, "no device")]
