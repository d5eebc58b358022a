"""Callers of all kinds: each does one thing to a service, and tells the statuses it got.

`KINDS` has them with how often they come and what they may be answered.
"""

from __future__ import annotations

import asyncio
import io
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image

from service.cli.load.http_response import read_response

PATIENCE = 120.0  # seconds for any answer
BOUNDARY = "between-the-parts-4f1c"
PATHS = ("/v1/models", "/metrics", "/health/live", "/health/ready", "/", "/docs", "/openapi.json")
WRONG = (
    ("?top_k=0", ""),
    ("?top_k=many", ""),
    ("?top_k=99999", ""),
    ("", "X-Request-Timeout-Ms: -5"),
    ("", "X-Request-Timeout-Ms: soon"),
)
ENCODINGS = (
    ("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"),
    ("WEBP", "RGB"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"),
)  # fmt: skip
SIZES = ((1, 1), (32, 32), (224, 300), (640, 480))


def encoded() -> list[bytes]:
    """Images of every encoding and size, the same each time."""
    draws = np.random.default_rng(0)
    coarse = Image.fromarray(draws.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    made = []
    for encoding, mode in ENCODINGS:
        for size in SIZES:
            buffer = io.BytesIO()
            coarse.resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, encoding)
            made.append(buffer.getvalue())
    return made


IMAGES = encoded()


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def status(self) -> int:
        """Of the next answer.

        Raises:
            ConnectionError: there is none.
            TimeoutError: it does not come.
        """
        data = b""
        while True:
            more = await asyncio.wait_for(self._reader.read(65_536), PATIENCE)
            data += more
            answer = read_response(data, ended=not more)
            if answer is not None:
                return answer.status
            if not more:
                raise ConnectionError(f"the connection ended after {len(data)} bytes of an answer")

    async def ask(self, request: bytes) -> int:
        await self.send(request)
        return await self.status()

    def reset(self) -> None:
        """Ends it as a caller does whose machine has no more to do with it."""
        own: socket.socket = self.writer.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Service(NamedTuple):
    host: str
    port: int

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: soak\r\n\r\n".encode()


def post(
    body: bytes,
    query: str = "",
    *headers: str,
    kind: str = "application/octet-stream",
    path: str = "/v1/classify",
) -> bytes:
    lines = [f"POST {path}{query} HTTP/1.1", "Host: soak", f"Content-Type: {kind}"]
    lines += [f"Content-Length: {len(body)}", *filter(None, headers)]
    return "\r\n".join((*lines, "", "")).encode() + body


def form(images: Sequence[bytes], path: str) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; '
        f'filename="{index}"\r\n\r\n'.encode()
        + image
        + b"\r\n"
        for index, image in enumerate(images)
    ]
    body = b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
    return post(body, path=path, kind=f"multipart/form-data; boundary={BOUNDARY}")


async def keeps_alive(service: Service, draw: random.Random) -> list[int]:
    async with service.connection() as connection:
        count = draw.randint(2, 6)
        return [await connection.ask(post(draw.choice(IMAGES), "?top_k=3")) for _ in range(count)]


async def asks_once(service: Service, draw: random.Random) -> list[int]:
    async with service.connection() as connection:
        return [await connection.ask(post(draw.choice(IMAGES), "", "Connection: close"))]


async def sends_a_form(service: Service, draw: random.Random) -> list[int]:
    async with service.connection() as connection:
        return [await connection.ask(form([draw.choice(IMAGES)], "/v1/classify"))]


async def sends_a_batch(service: Service, draw: random.Random) -> list[int]:
    images = [*draw.sample(IMAGES, draw.randint(1, 8)), b"no image"]
    async with service.connection() as connection:
        return [await connection.ask(form(images, "/v1/classify/batch"))]


async def sends_slowly(service: Service, draw: random.Random) -> list[int]:
    request = post(draw.choice(IMAGES))
    step = len(request) // 4 + 1
    async with service.connection() as connection:
        for start in range(0, len(request), step):
            await connection.send(request[start : start + step])
            await asyncio.sleep(draw.uniform(0.05, 0.3))
        return [await connection.status()]


async def reads(service: Service, draw: random.Random) -> list[int]:
    async with service.connection() as connection:
        return [await connection.ask(get(draw.choice(PATHS))) for _ in range(3)]


async def sends_a_damaged_image(service: Service, draw: random.Random) -> list[int]:
    image = draw.choice([image for image in IMAGES if len(image) > 200])
    async with service.connection() as connection:
        return [await connection.ask(post(image[: draw.randint(1, len(image) // 4)]))]


async def sends_a_text(service: Service, draw: random.Random) -> list[int]:
    async with service.connection() as connection:
        return [await connection.ask(post(b"words", kind="text/plain"))]


async def says_that_it_is_large(service: Service, draw: random.Random) -> list[int]:
    head = f"POST /v1/classify HTTP/1.1\r\nHost: soak\r\nContent-Length: {10**12}\r\n\r\n"
    async with service.connection() as connection:
        return [await connection.ask(head.encode())]


async def has_wrong_parameters(service: Service, draw: random.Random) -> list[int]:
    query, header = draw.choice(WRONG)
    async with service.connection() as connection:
        return [await connection.ask(post(draw.choice(IMAGES), query, header))]


async def looks_elsewhere(service: Service, draw: random.Random) -> list[int]:
    requests = (get("/v1/nothing%0ahere"), get("/metrics", "DELETE"), post(b"", "?model=nothing"))
    async with service.connection() as connection:
        return [await connection.ask(draw.choice(requests))]


async def speaks_no_http(service: Service, draw: random.Random) -> list[int]:
    async with service.connection() as connection:
        return [await connection.ask(draw.randbytes(40) + b"\r\n\r\n")]


async def leaves(service: Service, draw: random.Random) -> list[int]:
    """At any point of a request, in any of the ways in which a connection ends."""
    large = form(draw.sample(IMAGES, 8), "/v1/classify/batch")
    request = draw.choice([post(draw.choice(IMAGES)), large])
    until = draw.choice([0, 10, request.index(b"\r\n\r\n") + 4, len(request) // 2, len(request)])
    async with service.connection() as connection:
        if draw.random() < 0.3:
            await connection.ask(post(draw.choice(IMAGES)))
        await connection.send(request[:until])
        await asyncio.sleep(draw.choice([0.0, 0.002, 0.02, 0.2]))
        how = draw.randrange(3)
        if how == 0:
            connection.reset()
        elif how == 1:
            connection.writer.write_eof()
            await asyncio.sleep(0.05)
    return []


class Kind(NamedTuple):
    """`share` of all that come; `statuses` that they may get."""

    call: Callable[[Service, random.Random], Awaitable[list[int]]]
    share: float
    statuses: frozenset[int]


SERVED = frozenset({200, 429})
KINDS = (
    Kind(keeps_alive, 6, SERVED),
    Kind(asks_once, 6, SERVED),
    Kind(sends_a_form, 3, SERVED),
    Kind(sends_a_batch, 2, SERVED),
    Kind(sends_slowly, 2, SERVED),
    Kind(reads, 2, frozenset({200})),
    Kind(sends_a_damaged_image, 3, frozenset({400, 429})),
    Kind(sends_a_text, 1, frozenset({415, 429})),
    Kind(says_that_it_is_large, 1, frozenset({413, 429})),
    Kind(has_wrong_parameters, 2, frozenset({422, 429})),
    Kind(looks_elsewhere, 2, frozenset({404, 405})),
    Kind(speaks_no_http, 1, frozenset({400})),
    Kind(leaves, 6, frozenset()),
)
