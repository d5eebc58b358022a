"""Bodies of requests: how many bytes at a time, and for how long."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from service.body import Body, Intake
from service.errors import (
    CallerLeft,
    DeadlineExceeded,
    RequestTooSlow,
    ServiceError,
    TooLarge,
    UploadsFull,
)
from service.uploads import read_image

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


def read(request: Request, intake: Intake, max_bytes: int = 100, seconds: float = 60) -> bytes:
    async def within() -> bytes:
        deadline = asyncio.get_running_loop().time() + seconds
        with Body(request, intake, max_bytes, deadline) as body:
            return await read_image(body)

    return asyncio.run(within())


def test_what_was_received_is_given_back() -> None:
    intake = Intake(100, 60)
    assert read(sending(b"ab", b"c", content_length="3"), intake) == b"abc"
    assert read(sending(b"ab", b"c"), intake) == b"abc"
    assert intake.held == 0


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (sending(b"x" * 60, content_length="60"), UploadsFull),
        (sending(b"x" * 30, b"x" * 31), UploadsFull),
        (sending(content_length="101"), TooLarge),
        (sending(b"x" * 50, b"x" * 51, b""), TooLarge),
        (sending(b"x", None, content_length="9"), CallerLeft),
    ],
)
def test_refusals_give_everything_back(request_: Request, error: type[ServiceError]) -> None:
    intake = Intake(100, 60)
    held = 50 if error is UploadsFull else 0
    intake.take(held)
    with pytest.raises(error):
        read(request_, intake)
    assert intake.held == held


def test_a_body_that_comes_alone_is_taken_whatever_its_size() -> None:
    intake = Intake(10, 60)
    assert len(read(sending(b"x" * 40, b"y" * 41, content_length="81"), intake)) == 81
    assert len(read(sending(b"x" * 40, b"y" * 41), intake)) == 81
    assert intake.held == 0


@pytest.mark.parametrize(("seconds", "error"), [(0.05, DeadlineExceeded), (60, RequestTooSlow)])
@pytest.mark.parametrize("kind", ["image/png", FORM])
def test_who_sends_slowly_holds_nothing_for_long(
    seconds: float, error: type[ServiceError], kind: str
) -> None:
    intake = Intake(100, 0.2)
    start = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nx'
    with pytest.raises(error):
        read(sending(start, ends=False, content_type=kind), intake, 1000, seconds)
    assert intake.held == 0
