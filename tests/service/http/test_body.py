"""Bodies of requests: how many bytes at a time, and for how long."""

from __future__ import annotations

import asyncio
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
        with Body(request, budget, max_bytes, deadline) as body:
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
        (sending(b"x" * 60, content_length="60"), UploadsFull),
        (sending(b"x" * 30, b"x" * 31), UploadsFull),
        (sending(content_length="101"), TooLarge),
        (sending(b"x" * 50, b"x" * 51, b""), TooLarge),
        (sending(b"x", None, content_length="9"), ClientLeft),
    ],
)
def test_refusals_give_everything_back(request_: Request, error: type[ServiceError]) -> None:
    budget = UploadBudget(100, 60)
    held = 50 if error is UploadsFull else 0
    budget.reserve(held)
    with pytest.raises(error):
        read(request_, budget)
    assert budget.held == held


def test_a_body_that_comes_alone_is_taken_whatever_its_size() -> None:
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
    ("request_", "held", "words"),
    [
        (sending(content_length="101"), 0, "the body has 101 bytes; the limit is 100"),
        (sending(b"x" * 50, b"x" * 51), 0, "the body exceeds the limit of 100 bytes"),
        (sending(b"x", None), 0, "the client disconnected while sending the body"),
        (
            sending(b"x" * 51),
            50,
            "50 bytes of other requests' bodies are being received, and the limit is 100 for all; "
            "retry after the given time",
        ),
        (
            sending(b"x" * 30, b"x" * 21),
            50,
            "50 bytes of other requests' bodies are being received, and the limit is 100 for all; "
            "retry after the given time",
        ),
        (
            sending(b"x", ends=False),
            0,
            "the body took longer than 0.01 s to arrive; send it faster",
        ),
    ],
)
def test_a_refusal_says_why(request_: Request, held: int, words: str) -> None:
    budget = UploadBudget(100, 0.01)
    budget.reserve(held)
    with pytest.raises(ServiceError) as caught:
        whole(request_, budget)
    assert str(caught.value) == words
    if isinstance(caught.value, UploadsFull):
        assert caught.value.retry_after == 1
    assert budget.held == held


def whole(request: Request, budget: UploadBudget, seconds: float = 60) -> bytes:
    async def within() -> bytes:
        deadline = asyncio.get_running_loop().time() + seconds
        with Body(request, budget, 100, deadline) as body:
            return await body.read_all()

    return asyncio.run(within())


def test_a_deadline_that_comes_first_is_what_is_said() -> None:
    with pytest.raises(ClientDeadline) as caught:
        whole(sending(b"x", ends=False), UploadBudget(100, 60), 0.01)
    assert str(caught.value) == (
        "the deadline passed while the body was being sent; "
        "allow more time with X-Request-Timeout-Ms, or send it faster"
    )


@pytest.mark.parametrize(
    ("request_", "held"),
    [
        (sending(b"x" * 100, content_length="100"), 0),
        (sending(b"x" * 60, b"x" * 40), 0),
        (sending(b"x" * 40, content_length="40"), 60),
        (sending(b"x" * 20, b"x" * 20), 60),
        # What is no number is no length.
        (sending(b"x" * 40, content_length="-1"), 60),
        (sending(b"x" * 40, content_length="4e9"), 60),
    ],
)
def test_what_just_fits_is_taken(request_: Request, held: int) -> None:
    budget = UploadBudget(100, 60)
    budget.reserve(held)
    assert set(whole(request_, budget)) == {ord("x")}
    assert budget.held == held


def test_a_body_is_counted_once_and_from_when_it_says_its_length() -> None:
    async def test() -> None:
        budget = UploadBudget(100, 60)
        deadline = asyncio.get_running_loop().time() + 30
        with Body(sending(content_length="40"), budget, 100, deadline) as body:
            assert (budget.held, body.until) == (40, deadline)
            for count, held in ((10, 40), (40, 40), (70, 70), (60, 70), (90, 90)):
                body.hold(count)
                assert budget.held == held
            body.hold(120)
            assert budget.held == 120, "alone it may become larger than all together"
        assert budget.held == 0

    asyncio.run(test())


def test_a_body_of_unknown_length_is_counted_as_it_comes() -> None:
    async def test() -> None:
        budget = UploadBudget(100, 60)
        deadline = asyncio.get_running_loop().time() + 30
        held: list[int] = []
        with Body(sending(b"x" * 30, b"x" * 60), budget, 100, deadline) as body:
            held.append(budget.held)
            async for _ in body.chunks():
                held.append(budget.held)  # noqa: PERF401
        assert sorted(set(held)) == [0, 30, 90]

    asyncio.run(test())


def test_a_single_byte_of_others_bounds_all() -> None:
    budget = UploadBudget(100, 60)
    budget.reserve(1)
    with pytest.raises(UploadsFull):
        budget.reserve(100)
    budget.reserve(99)
    assert budget.held == 100
