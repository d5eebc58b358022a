"""Images in request bodies, in each form that clients send them in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

from fastapi import Request

from service.errors import ClientLeft, TooLarge
from service.http import content, encoding, forms, json_images
from service.http.body import Body
from service.http.content import ContentKind
from service.http.query import places_of
from service.http.record import record_of
from service.http.services import services_of
from service.http.upload import Upload
from service.inference.deadline import before

T = TypeVar("T")
LEFT = "the client disconnected before the response"
# Bytes of text that are decoded on the event loop, in less than a millisecond.
DIRECT_BYTES = 2**16


async def read_image(body: Body) -> bytes:
    """The one image of a request: its bytes, whatever their content type, a file in a form, or
    base64 in JSON or in a form; compressed as its Content-Encoding says.

    Raises:
        UnsupportedMediaType: it is not an image, and its type says something else.
        UnsupportedEncoding: it is compressed with neither gzip nor deflate.
        TooLarge, UploadsFull: see `service.http.body.Body`; also if the image that the body stands
            for exceeds its limit.
        BadParameter: there is no image or more than one, or a parameter is in the body.
        UndecodableImage: a form is malformed.
        InvalidInput: JSON or base64 is malformed.
        ClientDeadline, RequestTooSlow: it took too long to arrive.
        ClientLeft: the client disconnected while sending the body.
    """
    uploads = await read_images(body, 1)
    return the_image(uploads, body.max_bytes)


async def read_images(body: Body, max_images: int) -> list[Upload]:
    """The images of a request; raises as `read_image` does, and `TooLarge` if there are more."""
    found = await images_or_json(body, max_images)
    if isinstance(found, list):
        return found
    places = places_of(body.request.scope)
    work = partial(json_images.uploads_of, found, max_images, places)
    return await off_the_loop(body, len(found), work)


async def images_or_json(body: Body, max_images: int) -> list[Upload] | bytes:
    """The images of a request; if they are in JSON, its text. Raises as `read_images` does."""
    request = body.request
    declared, _ = content.declared_kind(request)
    if declared is content.FORM:
        form = await forms.read(body, max_images)
        if isinstance(form, bytes):
            return [Upload("", form)]
        size = sum(part.size for part in form)
        work = partial(forms.uploads_of, form, max_images, places_of(request.scope))
        return await off_the_loop(body, size, work)
    data = await encoding.read(body)
    kind = content.body_kind(request, declared, data)
    if kind is content.JSON:
        return data
    if kind is content.IMAGE:
        return [Upload("", data)]
    work = partial(_in_text, kind, data, max_images, places_of(request.scope))
    return await off_the_loop(body, len(data), work)


async def arrived_image(request: Request, max_bytes: int) -> bytes | None:
    """The one image of a request whose whole body has arrived; None if it has not, or if it is
    a form or compressed. Small images arrive so, and cost less than `Body` does.

    Raises:
        UnsupportedMediaType, BadParameter, InvalidInput, TooLarge, ClientLeft: as `read_image`.
    """
    if not record_of(request.scope).received:
        return None
    declared, coded = content.declared_kind(request)
    if coded or declared is content.FORM:
        return None
    message = await request.receive()
    if "body" not in message:
        raise ClientLeft(LEFT)
    body: bytes = message["body"]
    kind = content.body_kind(request, declared, body)
    if kind is content.IMAGE:
        if len(body) > max_bytes:
            raise TooLarge(f"the body has {len(body)} bytes; the limit is {max_bytes}")
        return body
    if len(body) > content.text_limit(max_bytes):
        raise TooLarge(f"the body has {len(body)} bytes; the limit is {max_bytes}")
    work = partial(_in_text, kind, body, 1, places_of(request.scope))
    direct = len(body) <= DIRECT_BYTES
    uploads = work() if direct else await services_of(request.scope).lane.run(work)
    return the_image(uploads, max_bytes)


def _in_text(
    kind: ContentKind, data: bytes, max_images: int, places: Mapping[str, str]
) -> list[Upload]:
    if kind is content.JSON:
        return json_images.uploads_of(data, max_images, places)
    return forms.uploads_of(forms.urlencoded(data), max_images, places)


def the_image(uploads: list[Upload], max_bytes: int) -> bytes:
    (upload,) = uploads
    if upload.error is not None:
        raise upload.error
    if len(upload.data) > max_bytes:
        raise TooLarge(f"the image has {len(upload.data)} bytes; the limit is {max_bytes}")
    return upload.data


async def off_the_loop(
    body: Body, size: int, work: Callable[[], T], direct: int = DIRECT_BYTES
) -> T:
    """The result of `work`, which takes as much memory as the body of `size` bytes again, and less
    than a millisecond or two for `direct` bytes."""
    if size <= direct:
        return work()
    body.hold(size)
    try:
        async with before(body.deadline):
            return await body.lane.run(work)
    finally:
        body.hold(-size)


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
