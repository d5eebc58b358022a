"""Images in request bodies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import (
    QUOTED,
    BadParameter,
    ClientLeft,
    TooLarge,
    UndecodableImage,
    UnsupportedMediaType,
)
from service.http.body import Body
from service.http.record import record_of

T = TypeVar("T")
FIELD = "image"
MULTIPART = "multipart/form-data"
MAX_TYPE_CHARACTERS = 1000  # of a content type; a boundary has up to 70
LEFT = "the client disconnected before the response"
PARSED_BYTES = 2**14  # of a form at a time: the worst take 100 ns a byte


@dataclass(frozen=True, slots=True)
class Upload:
    filename: str
    data: bytes


def media_type(request: Request) -> str:
    """The content type without its parameters; empty if there is none."""
    for name, value in request.scope["headers"]:
        if name == b"content-type":
            return str(value, "latin-1").partition(";")[0].strip().lower()
    return ""


async def read_image(body: Body) -> bytes:
    """The one image of a raw or multipart request.

    Raises:
        UnsupportedMediaType: the content type is not an image type.
        TooLarge, UploadsFull: see `service.http.body.Body`.
        BadParameter: a multipart body does not have exactly one field `image`.
        UndecodableImage: a form is malformed.
        ClientDeadline, RequestTooSlow: it took too long to arrive.
        ClientLeft: the client disconnected while sending the body.
    """
    kind = media_type(body.request)
    if kind == MULTIPART:
        uploads = await read_images(body, max_images=1)
        return uploads[0].data
    check_raw(kind)
    return await body.read_all()


def check_raw(kind: str) -> None:
    """Refuses content types that are not those of an image.

    Raises:
        UnsupportedMediaType: it names those that are.
    """
    # A missing type counts as octets: the decoder inspects the bytes anyway.
    if kind and kind != "application/octet-stream" and not kind.startswith("image/"):
        raise UnsupportedMediaType(
            f"unsupported content type {kind[:QUOTED]!r}; send the bytes as image/* or "
            f"application/octet-stream, or a form as {MULTIPART} with the field {FIELD!r}"
        )


async def arrived_image(request: Request, max_bytes: int) -> bytes | None:
    """The one image of a raw request whose whole body has arrived; None if it has not, or if it is
    a form. Small images arrive so, and cost less than `Body` does.

    Raises:
        UnsupportedMediaType, TooLarge, ClientLeft: as `read_image`.
    """
    kind = media_type(request)
    if not record_of(request.scope).received or kind == MULTIPART:
        return None
    check_raw(kind)
    message = await request.receive()
    if "body" not in message:
        raise ClientLeft(LEFT)
    body: bytes = message["body"]
    if len(body) > max_bytes:
        raise TooLarge(f"the body has {len(body)} bytes; the limit is {max_bytes}")
    return body


async def read_images(body: Body, max_images: int) -> list[Upload]:
    """The fields `image` of a multipart request; raises as `read_image` does."""
    if media_type(body.request) != MULTIPART:
        raise UnsupportedMediaType(f"send several images as {MULTIPART}, each in a field {FIELD!r}")
    content_type = body.request.headers["content-type"]
    if len(content_type) > MAX_TYPE_CHARACTERS:  # Parsing it would block the event loop.
        raise UndecodableImage(
            f"the form is malformed: its content type has {len(content_type)} characters; the "
            f"limit is {MAX_TYPE_CHARACTERS}"
        )
    _, parameters = parse_options_header(content_type)
    if parameters.get(b"charset", b"utf-8").lower() != b"utf-8":
        # Python's codecs include more than charsets: some take minutes, some return no text.
        raise UnsupportedMediaType(f"send {MULTIPART} without a charset, or with utf-8")
    parser = MultiPartParser(
        body.request.headers, _pieces(body), max_files=max_images, max_fields=16
    )
    parser.spool_max_size = body.max_bytes  # The whole body fits in memory; no spooling to disk.
    try:
        async with body.in_time():
            form = await parser.parse()
    except MultiPartException as error:
        message = error.message
        if "Too many files" in message and max_images == 1:
            raise BadParameter(
                "this endpoint takes one image; send several to /v1/classify/batch"
            ) from None
        if "Too many files" in message:
            raise TooLarge(f"more than {max_images} images in one request") from None
        reason = message.rstrip(".").lower()
        raise UndecodableImage(f"the form is malformed: {reason}") from None
    try:
        files = [value for value in form.getlist(FIELD) if isinstance(value, UploadFile)]
        if not files and max_images == 1:  # It can only be that one, whatever its field's name.
            files = [value for value in form.values() if isinstance(value, UploadFile)]
        if not files:
            if FIELD in form:
                raise BadParameter(f"the field {FIELD!r} contains text; send a file")
            names = ", ".join(map(repr, dict.fromkeys(form.keys())))[:QUOTED] or "none"
            raise BadParameter(f"the form has no field {FIELD!r}; its fields: {names}")
        return [Upload(file.filename or "", await file.read()) for file in files]
    finally:
        await form.close()


async def _pieces(body: Body) -> AsyncGenerator[bytes, None]:
    """The body in pieces that the parser of forms is done with in a millisecond or two."""
    async for chunk in body.chunks():
        for start in range(0, len(chunk), PARSED_BYTES):
            if start:
                await asyncio.sleep(0)
            yield chunk[start : start + PARSED_BYTES]


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work`, and cancels it if the client closes the connection.

    Read the body first: then the next message can only be the disconnect.

    Raises:
        ClientLeft: the client closed the connection first.
        QueueFull, NotReady, DeadlineExceeded: when its body was complete, too many were before it.
    """
    record, task = record_of(request.scope), asyncio.current_task()
    assert task is not None
    if record.entry is not None:
        record.entry.admitted()
        if record.entry.refusal is not None:
            work.close()
            raise record.entry.refusal
    working, left = True, record.left

    def leave() -> None:
        nonlocal left
        # Both may end in the same turn of the loop. What follows the work must not be cancelled.
        if working:
            left = True
            task.cancel()

    # Watching costs a task of its own where the connection does not tell.
    watching = None if record.watched else asyncio.ensure_future(request.receive())
    if watching is None:
        record.on_left = leave
    else:
        watching.add_done_callback(lambda done: None if done.cancelled() else leave())
    try:
        if left:
            work.close()
            raise ClientLeft(LEFT)
        return await work
    except asyncio.CancelledError:
        if not left or task.uncancel():
            raise  # The cancellation came from elsewhere.
        raise ClientLeft(LEFT) from None
    finally:
        working = False
        record.on_left = None
        if watching is not None:
            watching.cancel()
