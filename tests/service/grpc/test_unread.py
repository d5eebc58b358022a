from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from service.grpc.unread import Unread, close_connections, named
from service.inference.lane import Lane


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (("127.0.0.1", 4711), "ipv4:127.0.0.1:4711"),
        (("::ffff:127.0.0.1", 4711, 0, 0), "ipv4:127.0.0.1:4711"),
        (("::1", 4711, 0, 0), "ipv6:[::1]:4711"),
        (("fe80::1%lo", 4711, 0, 1), "ipv6:[fe80::1]:4711"),
    ],
)
def test_addresses_are_named_as_grpc_names_them(address: tuple[Any, ...], name: str) -> None:
    assert named(address) == name


def test_only_connections_of_the_peer_to_the_port_are_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("", 0)) as other:
        port = server.getsockname()[1]
        with (
            socket.create_connection(server.getsockname()) as first,
            socket.create_connection(server.getsockname()) as second,
            server.accept()[0],
            server.accept()[0],
        ):
            peer = f"ipv4:127.0.0.1:{first.getsockname()[1]}"
            assert close_connections({peer}, {other.getsockname()[1]}) == 0
            assert close_connections({"ipv6:%5B::1%5D:1"}, {port}) == 0
            assert close_connections({peer}, {port}) == 1
            assert first.recv(1) == b""
            second.settimeout(0.05)
            with pytest.raises(TimeoutError):
                second.recv(1)


def test_who_reads_in_time_is_not_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Context:
        def __init__(self) -> None:
            self.done: Any = None

        def peer(self) -> str:
            return "ipv4:127.0.0.1:1"

        def add_done_callback(self, done: Any) -> None:
            self.done = done

    closed: list[set[str]] = []
    monkeypatch.setattr(
        "service.grpc.unread.close_connections", lambda peers, ports: closed.append(peers)
    )

    async def run() -> None:
        unread, context = Unread({1}, Lane(1, "test"), 0.01), Context()
        unread.until_done(context)
        context.done(context)
        with unread.within(context):
            pass
        await asyncio.sleep(0.03)
        assert not closed
        with unread.within(context), unread.within(context):
            await asyncio.sleep(0.1)
        assert closed == [{"ipv4:127.0.0.1:1"}]

    asyncio.run(run())
