from __future__ import annotations

import asyncio
import errno
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from service.http.acceptor import Acceptor


class Doorway:
    """See `service.http.acceptor.Door`."""

    def __init__(self, lead: Callable[[], int], most: int = 1000) -> None:
        self._lead = lead
        self._most = most
        self.waited: list[float] = []

    def lead(self, pending: int) -> int:
        return self._lead()

    def admits(self, pending: int) -> bool:
        return pending < self._most

    def accepted(self, waited: float) -> None:
        self.waited.append(waited)


class Counting(asyncio.Protocol):
    made = 0

    def __init__(self, stream: socket.socket) -> None:
        pass

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        type(self).made += 1
        transport.close()


async def accepted(lead: int, connections: int, *, hurry: bool = False) -> int:
    """How many of waiting connections an acceptor takes that has so many more than others."""
    Counting.made = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        callers = [socket.create_connection(listener.getsockname()) for _ in range(connections)]
        acceptor = Acceptor([listener], Counting, Doorway(lambda: lead))
        acceptor.start(100)
        if hurry:
            acceptor.hurry()
        async with asyncio.timeout(10):
            while Counting.made < connections:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        acceptor.close()
        await acceptor.wait_closed()
        for caller in callers:
            caller.close()
        assert acceptor.pending == 0
    return Counting.made


def test_all_that_waits_is_accepted_even_if_nobody_with_fewer_does() -> None:
    assert asyncio.run(accepted(lead=0, connections=20)) == 20
    assert asyncio.run(accepted(lead=5, connections=20)) == 20
    assert asyncio.run(accepted(lead=5, connections=20, hurry=True)) == 20


@pytest.mark.parametrize("lead", [0, 5])
@pytest.mark.parametrize("hurry", [False, True])
def test_all_listeners_are_accepted_from_and_closed(tmp_path: Path, lead: int, hurry: bool) -> None:
    """A unix socket does not tell how many wait."""

    async def test() -> None:
        Counting.made = 0
        with (
            socket.create_server(("127.0.0.1", 0)) as tcp,
            socket.create_server(str(tmp_path / "s"), family=socket.AF_UNIX) as unix,
        ):
            acceptor = Acceptor([tcp, unix], Counting, Doorway(lambda: lead))
            acceptor.start(100)
            callers = []
            for listener in (tcp, unix) * 20:
                caller = socket.socket(listener.family)
                caller.connect(listener.getsockname())
                callers.append(caller)
            if hurry:
                acceptor.hurry()
            while Counting.made < len(callers):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            acceptor.close()
            acceptor.close()
            await acceptor.wait_closed()
            for caller in callers:
                caller.close()
            assert (tcp.fileno(), unix.fileno()) == (-1, -1)

    asyncio.run(asyncio.wait_for(test(), 30))


def test_a_listener_keeps_the_backlog_of_who_made_it() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
            acceptor = Acceptor([listener], Counting, Doorway(lambda: 0))
            acceptor.start(100)
            # tcp(7): of a listener, `tcpi_sacked` is its backlog.
            info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            assert int.from_bytes(info[28:32], sys.byteorder) == 1
            acceptor.close()

    asyncio.run(test())


def accepted_all(acceptor: Acceptor) -> bool:
    return acceptor.pending > 0 and all(task.done() for task in acceptor._accepting)


def test_closed_no_connection_is_pending() -> None:
    """Not even where the last has just been accepted, and its task is done but not noticed yet."""

    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            acceptor = Acceptor([listener], Counting, Doorway(lambda: 0))
            acceptor.start(1)
            with socket.create_connection(listener.getsockname()):
                # Each turn of the loop, so that none passes between done and closed.
                while not accepted_all(acceptor):  # noqa: ASYNC110
                    await asyncio.sleep(0)
                acceptor.close()
                await acceptor.wait_closed()
                assert acceptor.pending == 0

    asyncio.run(asyncio.wait_for(test(), 10))


def test_who_has_more_leaves_connections_to_who_has_fewer() -> None:
    async def test() -> None:
        counts = [0, 0]
        with socket.create_server(("127.0.0.1", 0)) as listener:

            class First(asyncio.Protocol):
                def __init__(self, stream: socket.socket) -> None:
                    pass

                def connection_made(self, transport: asyncio.BaseTransport) -> None:
                    counts[0] += 1

            class Second(asyncio.Protocol):
                def __init__(self, stream: socket.socket) -> None:
                    pass

                def connection_made(self, transport: asyncio.BaseTransport) -> None:
                    counts[1] += 1

            acceptors = [
                Acceptor([listener.dup()], First, Doorway(lambda: counts[0] - min(counts))),
                Acceptor([listener.dup()], Second, Doorway(lambda: counts[1] - min(counts))),
            ]
            for acceptor in acceptors:
                acceptor.start(100)
            callers = []
            for _ in range(30):
                reader, writer = await asyncio.open_connection(*listener.getsockname())
                callers.append((reader, writer))
            async with asyncio.timeout(10):
                while sum(counts) < 30:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            for _, writer in callers:
                writer.close()
            for acceptor in acceptors:
                acceptor.close()
        assert min(counts) >= 10

    asyncio.run(test())


def test_a_busy_loop_accepts_many_in_each_turn() -> None:
    """One in a turn would make new clients, and probes, wait for as many turns as there are."""

    async def test() -> tuple[int, list[float]]:
        Counting.made = 0
        with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
            callers = [socket.create_connection(listener.getsockname()) for _ in range(60)]
            door = Doorway(lambda: 0)
            acceptor = Acceptor([listener], Counting, door)
            acceptor.start(100)
            turns = 0
            while Counting.made < 60:
                turns += 1
                time.sleep(0.02)  # noqa: ASYNC251
                await asyncio.sleep(0)
            acceptor.close()
            for caller in callers:
                caller.close()
        return turns, door.waited

    turns, waited = uvloop.run(test())
    assert turns < 10
    # The kernel tells how long each has waited.
    assert len(waited) == 60
    assert all(0.0 < seconds < 10.0 for seconds in waited)


def test_who_is_one_too_many_is_closed_before_it_costs_anything() -> None:
    async def test() -> None:
        Counting.made = 0
        with socket.create_server(("127.0.0.1", 0)) as listener:
            acceptor = Acceptor([listener], Counting, Doorway(lambda: 0, most=0))
            acceptor.start(10)
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            assert await reader.read() == b""
            writer.close()
            acceptor.close()
        assert Counting.made == 0

    asyncio.run(asyncio.wait_for(test(), 10))


def test_a_connection_that_failed_before_it_was_accepted_holds_up_no_other() -> None:
    class Failing(socket.socket):
        failures = 3

        def accept(self) -> tuple[socket.socket, object]:
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EPROTO, "Protocol error")
            return super().accept()

    async def test() -> None:
        Counting.made = 0
        with Failing() as listener:
            listener.bind(("127.0.0.1", 0))
            acceptor = Acceptor([listener], Counting, Doorway(lambda: 0))
            acceptor.start(10)
            began = time.monotonic()
            with socket.create_connection(listener.getsockname()):
                while not Counting.made:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            assert time.monotonic() < began + 0.9
            acceptor.close()

    asyncio.run(asyncio.wait_for(test(), 10))
