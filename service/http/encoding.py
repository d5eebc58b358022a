"""Compression of request and response bodies."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable

from starlette.requests import Request

from service.errors import QUOTED, InvalidInput, TooLarge, UnsupportedEncoding
from service.http.body import Body

# zlib's window bits, which select the format.
WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
# Bytes inflated per step: memory exceeds the limit by no more.
STEP_BYTES = 2**20
# Below this, an additional header costs what compression saves.
MIN_COMPRESSED_BYTES = 1024
LEVEL = 1
MAX_ACCEPTED_CHARACTERS = 1000  # of Accept-Encoding; the rest is ignored
ACCEPTED = re.compile(r"\s*([a-z*]+)\s*(?:;\s*q\s*=\s*([0-9.]{1,5})\s*)?")


async def read(body: Body, max_inflated: Callable[[int], int] | None = None) -> bytes:
    """A request's complete body, decompressed according to its Content-Encoding.

    `max_inflated` limits the decompressed size, given the compressed one; default: the body's own
    limit.

    Raises:
        UnsupportedEncoding: it is neither gzip nor deflate, or there are several.
        InvalidInput: the data is corrupt.
        TooLarge: it exceeds the limit, compressed or decompressed.
        UploadsFull, ClientLeft, ClientDeadline, RequestTooSlow: see `service.http.body.Body`.
    """
    encoding = encoding_of(body.request)
    if encoding is None:
        return await body.read_all()
    async with body.in_time():
        chunks = [chunk async for chunk in body.chunks()]
        size = sum(map(len, chunks))
        most = min(body.max_received, max_inflated(size) if max_inflated else body.max_received)
        content = await body.lane.run(inflate, chunks, encoding, most)
    body.hold(len(content) - size)
    return content


def encoding_of(request: Request) -> str | None:
    """How a body is compressed; None: it is not.

    Raises:
        UnsupportedEncoding: in no way that is known here, or in several.
    """
    sent = ",".join(request.headers.getlist("content-encoding"))
    codings = [coding.strip().lower() for coding in sent.split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if not codings:
        return None
    encoding = codings[0].removeprefix("x-")  # RFC 9110, section 8.4.1.3
    if len(codings) > 1 or encoding not in WINDOW_BITS:
        raise UnsupportedEncoding(
            f"unsupported Content-Encoding {sent[:QUOTED]!r}; send the body with gzip or deflate, "
            "or uncompressed"
        )
    return encoding


def inflate(chunks: Iterable[bytes], encoding: str, most: int) -> bytes:
    """The data of which `chunks` are the compressed form.

    Raises:
        InvalidInput: it is corrupt.
        TooLarge: it has more than `most` bytes.
    """
    inflater = zlib.decompressobj(WINDOW_BITS[encoding])
    parts: list[bytes] = []
    size = 0
    try:
        for chunk in chunks:
            rest = chunk
            while rest:
                if inflater.eof:
                    raise InvalidInput(f"unexpected bytes after the body's {encoding} data")
                part = inflater.decompress(rest, STEP_BYTES)
                rest = inflater.unconsumed_tail or inflater.unused_data
                size += len(part)
                if size > most:
                    raise TooLarge(
                        f"the body decompresses to more than {most} bytes; send it uncompressed"
                    )
                parts.append(part)
    except zlib.error:
        raise InvalidInput(
            f"the body is not valid {encoding} data, contrary to Content-Encoding"
        ) from None
    if not inflater.eof:
        raise InvalidInput(f"the body's {encoding} data is truncated")
    return b"".join(parts)


def negotiate(header: str | None) -> str | None:
    """The client's preference between gzip and deflate in `Accept-Encoding`; None: neither."""
    weights: dict[str, float] = {}
    for part in (header or "")[:MAX_ACCEPTED_CHARACTERS].lower().split(","):
        if match := ACCEPTED.fullmatch(part):
            try:
                weights[match[1]] = float(match[2] or 1)
            except ValueError:
                continue
    default = weights.get("*", 0.0)
    best = max(WINDOW_BITS, key=lambda name: weights.get(name, default))
    weight = weights.get(best, default)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def compress(content: bytes, encoding: str) -> bytes:
    compressor = zlib.compressobj(LEVEL, wbits=WINDOW_BITS[encoding])
    return compressor.compress(content) + compressor.flush()
