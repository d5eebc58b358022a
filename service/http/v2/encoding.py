"""Bodies that come compressed, and answers that go so."""

from __future__ import annotations

import asyncio
import re
import zlib

from service.errors import InvalidInput, TooLarge
from service.http.body import Body

# What zlib is told of each format, to read it and to write it.
WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
# Inflated at a time: others get their turn in between, and no more lies in memory too much.
STEP_BYTES = 2**20
# Below, a header more costs what compressing saves.
WORTHWHILE_BYTES = 1024
LEVEL = 1
ACCEPTED = re.compile(r"\s*([a-z*]+)\s*(?:;\s*q\s*=\s*([0-9.]{1,5})\s*)?")


async def read(body: Body) -> bytes:
    """A request's whole body, decompressed as its Content-Encoding says.

    Raises:
        InvalidInput: it is compressed in another way than gzip or deflate, or damaged.
        TooLarge: it is larger than the limit, as it comes or decompressed.
        UploadsFull, ClientLeft, DeadlineExceeded, RequestTooSlow: see `service.http.body.Body`.
    """
    encoding = body.request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        return await body.whole()
    if encoding not in WINDOW_BITS:
        raise InvalidInput("Content-Encoding must be gzip or deflate, or not be there")
    try:
        async with asyncio.timeout_at(body.until):
            return await _inflated(body, encoding)
    except TimeoutError:
        raise body.late() from None


async def _inflated(body: Body, encoding: str) -> bytes:
    inflater = zlib.decompressobj(WINDOW_BITS[encoding])
    parts: list[bytes] = []
    size = 0
    try:
        async for chunk in body.chunks():
            left = chunk
            while left:
                if inflater.eof:
                    raise InvalidInput(f"bytes follow the body's {encoding} data")
                part = inflater.decompress(left, STEP_BYTES)
                left = inflater.unconsumed_tail or inflater.unused_data
                size += len(part)
                if size > body.max_bytes:
                    raise TooLarge(f"the body decompresses to more than {body.max_bytes} bytes")
                body.hold(size)
                parts.append(part)
                await asyncio.sleep(0)
    except zlib.error:
        raise InvalidInput(f"the body is not {encoding}, which Content-Encoding says") from None
    if not inflater.eof:
        raise InvalidInput(f"the body ends within its {encoding} data")
    return b"".join(parts)


def accepted(header: str | None) -> str | None:
    """Which of gzip and deflate the caller wants most by `Accept-Encoding`; None: neither."""
    weights: dict[str, float] = {}
    for part in (header or "").lower().split(","):
        if match := ACCEPTED.fullmatch(part):
            try:
                weights[match[1]] = float(match[2] or 1)
            except ValueError:
                continue
    other = weights.get("*", 0.0)
    best = max(WINDOW_BITS, key=lambda name: weights.get(name, other))
    weight = weights.get(best, other)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def deflated(content: bytes, encoding: str) -> bytes:
    compressor = zlib.compressobj(LEVEL, wbits=WINDOW_BITS[encoding])
    return compressor.compress(content) + compressor.flush()
