"""Bodies of requests: how many bytes at a time, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import Request

from service.errors import (
    ClientDeadline,
    ClientLeft,
    RequestTooSlow,
    ServiceError,
    TooLarge,
    UploadsFull,
)
from service.http.body import Body, UploadBudget
from service.http.uploads import read_image
from service.inference.lane import Lane

LANE = Lane(1, "test")
FORM = "multipart/form-data; boundary=b"


def sending(*chunks: bytes | None, ends: bool = True, **headers: str) -> Request:
    """A request with these chunks as its body, then silence unless it `ends`; None: who leaves."""
    told = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    left = list(chunks)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        chunk = left.pop(0)
        if chunk is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": bool(left) or not ends}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": told}, receive)


def read(
    request: Request, budget: UploadBudget, max_bytes: int = 100, seconds: float = 60
) -> bytes:
    async def within() -> bytes:
        deadline = asyncio.get_running_loop().time() + seconds
        with Body(request, budget, LANE, max_bytes, deadline) as body:
            return await read_image(body)

    return asyncio.run(within())


def test_what_was_received_is_given_back() -> None:
    budget = UploadBudget(100, 60)
    assert read(sending(b"ab", b"c", content_length="3"), budget) == b"abc"
    assert read(sending(b"ab", b"c"), budget) == b"abc"
    assert budget.held == 0


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (sending(content_length="101"), TooLarge),
        (sending(b"x" * 50, b"x" * 51, b""), TooLarge),
        (sending(b"x", None, content_length="9"), ClientLeft),
    ],
)
def test_refusals_give_everything_back(request_: Request, error: type[ServiceError]) -> None:
    budget = UploadBudget(100, 60)
    with pytest.raises(error):
        read(request_, budget)
    assert budget.held == 0


def test_the_largest_body_is_taken_whatever_its_size() -> None:
    budget = UploadBudget(10, 60)
    assert len(read(sending(b"x" * 40, b"y" * 41, content_length="81"), budget)) == 81
    assert len(read(sending(b"x" * 40, b"y" * 41), budget)) == 81
    assert budget.held == 0


@pytest.mark.parametrize(("seconds", "error"), [(0.05, ClientDeadline), (60, RequestTooSlow)])
@pytest.mark.parametrize("kind", ["image/png", FORM])
def test_who_sends_slowly_holds_nothing_for_long(
    seconds: float, error: type[ServiceError], kind: str
) -> None:
    budget = UploadBudget(100, 0.2)
    start = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nx'
    with pytest.raises(error):
        read(sending(start, ends=False, content_type=kind), budget, 1000, seconds)
    assert budget.held == 0


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (sending(content_length="101"), "the body has 101 bytes; the limit is 100"),
        (sending(b"x" * 50, b"x" * 51), "the body exceeds the limit of 100 bytes"),
        (sending(b"x", None), "the client disconnected while sending the body"),
        (
            sending(b"x", ends=False),
            "the body took longer than 0.01 s to arrive; send it faster",
        ),
    ],
)
def test_a_refusal_says_why(request_: Request, words: str) -> None:
    budget = UploadBudget(100, 0.01)
    with pytest.raises(ServiceError) as caught:
        whole(request_, budget)
    assert str(caught.value) == words
    assert budget.held == 0


def whole(request: Request, budget: UploadBudget, seconds: float = 60) -> bytes:
    async def within() -> bytes:
        deadline = asyncio.get_running_loop().time() + seconds
        with Body(request, budget, LANE, 100, deadline) as body:
            return await body.read_all()

    return asyncio.run(within())


def test_a_deadline_that_comes_first_is_what_is_said() -> None:
    with pytest.raises(ClientDeadline) as caught:
        whole(sending(b"x", ends=False), UploadBudget(100, 60), 0.01)
    assert str(caught.value) == (
        "the deadline passed while the body was being sent; "
        "allow more time with X-Request-Timeout-Ms, or send it faster"
    )


def taking(budget: UploadBudget, request: Request) -> Body:
    return Body(request, budget, LANE, 100, asyncio.get_running_loop().time() + 30)


@pytest.mark.parametrize(
    "request_",
    [
        sending(b"x" * 40, content_length="40"),
        sending(b"x" * 20, b"x" * 20),
        # What is no number is no length.
        sending(b"x" * 40, content_length="-1"),
        sending(b"x" * 40, content_length="4e9"),
    ],
)
def test_what_just_fits_is_taken(request_: Request) -> None:
    async def test() -> None:
        budget = UploadBudget(100, 60)
        with taking(budget, sending()) as large, taking(budget, sending()) as other:
            large.hold(70)
            other.hold(60)
            with taking(budget, request_) as body:
                assert set(await body.read_all()) == {ord("x")}
                assert budget.held == 170
            assert budget.held == 130
        assert budget.held == 0

    asyncio.run(test())


def test_a_body_is_counted_as_it_comes_whatever_it_announces() -> None:
    async def test() -> None:
        budget = UploadBudget(100, 60)
        for announced in ("", "90"):
            held = []
            with taking(budget, sending(b"x" * 30, b"x" * 60, content_length=announced)) as body:
                held.append(budget.held)
                async for _ in body.chunks():
                    held.append(budget.held)  # noqa: PERF401
            assert sorted(set(held)) == [0, 30, 90]
        assert budget.held == 0

    asyncio.run(test())


def test_the_bodies_that_would_take_longest_give_way() -> None:
    """And not the ones that have just begun, nor those that are complete."""

    async def test() -> None:
        budget = UploadBudget(100, 60)
        complete = taking(budget, sending())
        largest = sending(b"x" * 90, ends=False, content_length="100")
        nearly = sending(b"x" * 60, ends=False, content_length="61")
        slow = sending(b"x" * 39, ends=False, content_length="100")
        with complete:
            complete.hold(1)
            complete.receiving = False
            tasks = [asyncio.create_task(receive(budget, each)) for each in (largest, nearly, slow)]
            await asyncio.sleep(0.05)
            assert budget.held == 190
            assert await receive(budget, sending(b"y" * 30, content_length="30")) == b"y" * 30
            done, pending = await asyncio.wait(tasks, timeout=0.05)
            assert done == {tasks[2]}
            assert pending == set(tasks[:2])
            with pytest.raises(UploadsFull) as caught:
                tasks[2].result()
            assert caught.value.retry_after == 1
            assert str(caught.value) == (
                "more than 100 bytes of bodies are being received, and this one would take longest "
                "to complete; retry after the given time"
            )
            assert budget.held == 151
            for task in pending:
                task.cancel()
            await asyncio.wait(pending)
        assert budget.held == 0

    asyncio.run(test())


async def receive(budget: UploadBudget, request: Request) -> bytes:
    with taking(budget, request) as body:
        return await body.read_all()


def test_a_body_gives_way_itself_where_no_other_can() -> None:
    async def test() -> None:
        budget = UploadBudget(100, 60)
        with taking(budget, sending()) as first, taking(budget, sending()) as second:
            for body in (first, second):
                body.hold(90)
                body.receiving = False
            with pytest.raises(UploadsFull):
                await receive(budget, sending(b"x" * 20, content_length="20"))
            assert budget.held == 180

    asyncio.run(test())


@pytest.mark.parametrize("kind", ["image/png", FORM])
def test_a_body_that_arrives_too_slowly_is_refused(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever arrived before, and however long it might take."""
    monkeypatch.setattr("service.http.body.RATE_SECONDS", 0.1)
    start = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nx'
    budget = UploadBudget(1000, 60, min_rate=1000)
    with pytest.raises(RequestTooSlow) as caught:
        read(sending(start, ends=False, content_type=kind), budget, 1000)
    assert str(caught.value) == (
        "the body arrived at less than 1000 bytes per second; send it faster"
    )
    assert budget.held == 0


@pytest.mark.parametrize("min_rate", [0, 1000])
def test_a_body_may_take_its_time_if_it_keeps_the_rate(
    min_rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.http.body.RATE_SECONDS", 0.1)
    request = sending()

    async def arriving() -> AsyncGenerator[bytes, None]:
        for _ in range(20):
            await asyncio.sleep(0.03)
            yield b"x" * 2 * min_rate  # 60 times as fast as necessary, if it is.

    monkeypatch.setattr(request, "stream", arriving)
    assert len(read(request, UploadBudget(10, 60, min_rate), 10**6)) == 40 * min_rate
