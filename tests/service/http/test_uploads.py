"""Forms that would block the event loop, and clients who leave while their image is computed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest
from starlette.requests import Request

from service.errors import ClientLeft, UndecodableImage
from service.http import forms
from service.http.body import Body, UploadBudget
from service.http.upload import Upload
from service.http.uploads import read_images, until_disconnect
from tests.service.http.test_body import FORM, LANE, sending

HEAD = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
END = b"\r\n--b--\r\n"


async def read(request: Request) -> list[Upload]:
    deadline = asyncio.get_running_loop().time() + 60
    with Body(request, UploadBudget(10**9, 60), LANE, 10**9, deadline) as body:
        return await read_images(body, 64)


def test_a_form_is_the_same_in_one_piece_and_in_many() -> None:
    data = bytes(range(256)) * 300 + b"\r\n--" + b"\r\n--bx" * 5000
    whole = HEAD + data + END
    for size in (len(whole), 1000, 77):
        chunks = [whole[start : start + size] for start in range(0, len(whole), size)]
        (upload,) = asyncio.run(read(sending(*chunks, content_type=FORM)))
        assert upload == Upload("a", data)


def test_the_event_loop_goes_on_while_a_form_is_parsed() -> None:
    """However much comes at once, and however costly it is: here, ends that are none."""
    content = HEAD + b"\r\n--bx" * 200_000 + END
    turns = 0

    async def scene() -> None:
        nonlocal turns

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await read(sending(content, content_type=FORM))
        counting.cancel()

    asyncio.run(scene())
    assert turns >= len(content) // forms.PARSED_BYTES


def test_a_content_type_that_would_take_long_to_parse_is_refused() -> None:
    for parameters in (";" * 60_000, ";a=b" * 15_000):
        request = sending(HEAD, END, content_type=f"{FORM}{parameters}")
        began = time.thread_time()
        with pytest.raises(UndecodableImage, match="its content type has"):
            asyncio.run(read(request))
        assert time.thread_time() - began < 1


def connected(left: asyncio.Event) -> Request:
    """A request whose client leaves with the event."""

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


def test_who_leaves_ends_the_work() -> None:
    async def scene() -> None:
        left = asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, left.set)
        with pytest.raises(ClientLeft):
            await until_disconnect(connected(left), asyncio.sleep(60))

    asyncio.run(scene())


@pytest.mark.parametrize("turns", range(6))
def test_who_leaves_as_the_work_ends_cancels_nothing_that_follows(turns: int) -> None:
    """Else what follows would be refused as if the service had shut down."""

    async def scene() -> None:
        left, done = asyncio.Event(), asyncio.Event()

        async def work() -> int:
            await done.wait()
            for _ in range(turns):  # The end of the work falls on each turn beside the other.
                await asyncio.sleep(0)
            return 1

        loop = asyncio.get_running_loop()
        for event in (left, done):
            loop.call_later(0.01, event.set)
        with contextlib.suppress(ClientLeft):
            assert await until_disconnect(connected(left), work()) == 1
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(scene())
