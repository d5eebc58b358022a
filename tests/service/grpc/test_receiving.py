from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import grpc.aio
import pytest

from service.errors import (
    ClientDeadline,
    InvalidInput,
    NotReady,
    RequestTooSlow,
    TooLarge,
    UploadsFull,
)
from service.grpc import receiving
from service.grpc.receiving import Message, Receiving
from service.http.body import UploadBudget
from service.inference.lane import Lane

LANE = Lane(1, "test")


class Sending:
    """A call whose message comes when it is told to."""

    def __init__(self, content: Any = None) -> None:
        self.arrived = asyncio.Event()
        self.content = content
        if content is not None:
            self.arrived.set()

    async def read(self) -> Any:
        await self.arrived.wait()
        return self.content


def common(max_bytes: int = 100, seconds: float = 60.0, largest: int = 40) -> Receiving:
    return Receiving(UploadBudget(max_bytes, seconds), LANE, largest)


async def received(shared: Receiving, sending: Any, within: float = 60.0, most: int = 40) -> bytes:
    deadline = asyncio.get_running_loop().time() + within
    with Message(shared, most) as message:
        return await message.read_one(sending, deadline)


def test_what_was_received_is_given_back() -> None:
    async def run() -> None:
        shared = common()
        deadline = asyncio.get_running_loop().time() + 60
        with Message(shared, 40) as message:
            assert await message.read_one(Sending(b"abc"), deadline) == b"abc"
            assert shared.budget.held == 3
        assert shared.budget.held == 0
        with pytest.raises(TooLarge, match="has 41 bytes; the limit is 40"):
            await received(shared, Sending(bytes(41)))
        with pytest.raises(InvalidInput, match="no message"):
            await received(shared, Sending(grpc.aio.EOF))
        assert shared.budget.held == 0

    asyncio.run(run())


def test_messages_that_are_held_keep_others_out() -> None:
    """As with the bodies of HTTP, the largest does not count."""

    async def run() -> None:
        shared = common(max_bytes=100)
        held = [Message(shared, 60) for _ in range(3)]
        for message in held:
            with_it = message.__enter__()
            assert with_it is message
        held[0].count(bytes(60))
        held[1].count(bytes(60))
        with pytest.raises(UploadsFull):
            held[2].count(bytes(50))
        for message in held:
            message.__exit__(None, None, None)
        assert shared.budget.held == 0

    asyncio.run(run())


def test_a_message_has_the_calls_time_and_its_own() -> None:
    async def run() -> None:
        with pytest.raises(ClientDeadline):
            await received(common(), Sending(), within=0.01)
        with pytest.raises(RequestTooSlow, match=r"longer than 0\.01 s"):
            await received(common(seconds=0.01), Sending())

    asyncio.run(run())


def test_of_slow_messages_the_slowest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "QUICK_SECONDS", 0.0)

    async def run() -> None:
        shared = common(max_bytes=100, largest=40)
        assert shared.most_slow == 2
        calls = [Sending() for _ in range(4)]
        tasks = []
        for call in calls:
            tasks.append(asyncio.create_task(received(shared, call)))
            await asyncio.sleep(0.02)
        for task in tasks[:2]:
            with pytest.raises(UploadsFull, match="more than 2 calls"):
                await task
        for call in calls[2:]:
            call.content = b"x"
            call.arrived.set()
        assert await asyncio.gather(*tasks[2:]) == [b"x", b"x"]
        assert shared.budget.held == 0

    asyncio.run(run())


def test_quick_messages_never_give_way() -> None:
    async def run() -> None:
        shared = common(max_bytes=100, largest=40)
        calls = [Sending() for _ in range(50)]
        tasks = [asyncio.create_task(received(shared, call)) for call in calls]
        await asyncio.sleep(0)
        for call in calls:
            call.content = b"x"
            call.arrived.set()
        assert await asyncio.gather(*tasks) == [b"x"] * 50

    asyncio.run(run())


def test_a_stream_may_pause_without_counting_as_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "QUICK_SECONDS", 0.0)

    async def run() -> None:
        shared = common(max_bytes=1)
        calls = [Sending() for _ in range(50)]
        tasks = [
            asyncio.create_task(Message(shared, 40).read(call, may_pause=True)) for call in calls
        ]
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in tasks)
        for call in calls:
            call.content = b"x"
            call.arrived.set()
        assert await asyncio.gather(*tasks) == [b"x"] * 50
        waiting = Message(shared, 40)
        reading = asyncio.create_task(waiting.read(Sending(), may_pause=True))
        await asyncio.sleep(0)
        waiting.end(NotReady("closing", 1.0))
        with pytest.raises(NotReady):
            await reading

    asyncio.run(run())


def test_compressed_messages_are_decompressed_up_to_the_limit() -> None:
    async def run() -> None:
        for compress in (gzip.compress, zlib.compress):
            assert await received(common(), Sending(compress(b"abc"))) == b"abc"
            assert await received(common(), Sending(compress(bytes(40)))) == bytes(40)
            with pytest.raises(TooLarge, match="decompresses to more than 40 bytes"):
                await received(common(), Sending(compress(bytes(41))))
            with pytest.raises(InvalidInput):
                await received(common(), Sending(compress(b"abc")[:-3]))
        for plain in (b"", b"\x78", b"\x78\x00", b"\x1f"):
            assert await received(common(), Sending(plain)) == plain

    asyncio.run(run())
