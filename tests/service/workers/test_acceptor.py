from __future__ import annotations

import asyncio
import socket

from service.workers.acceptor import Acceptor


class Counting(asyncio.Protocol):
    made = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        type(self).made += 1
        transport.close()


async def accepted(lead: int, connections: int, *, hurry: bool = False) -> int:
    """How many of waiting connections an acceptor takes that has so many more than others."""
    Counting.made = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        callers = [socket.create_connection(listener.getsockname()) for _ in range(connections)]
        acceptor = Acceptor(listener, Counting, lambda: lead)
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


def accepted_all(acceptor: Acceptor) -> bool:
    return acceptor.pending > 0 and all(task.done() for task in acceptor._accepting)


def test_closed_no_connection_is_pending() -> None:
    """Not even where the last has just been accepted, and its task is done but not noticed yet."""

    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            acceptor = Acceptor(listener, Counting, lambda: 0)
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
                def connection_made(self, transport: asyncio.BaseTransport) -> None:
                    counts[0] += 1

            class Second(asyncio.Protocol):
                def connection_made(self, transport: asyncio.BaseTransport) -> None:
                    counts[1] += 1

            acceptors = [
                Acceptor(listener.dup(), First, lambda: counts[0] - min(counts)),
                Acceptor(listener.dup(), Second, lambda: counts[1] - min(counts)),
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
        assert min(counts) >= 13

    asyncio.run(test())
