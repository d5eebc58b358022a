"""A closed-loop load generator: each connection sends its next image when it has its answer."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from urllib.parse import urlsplit

import numpy as np

from service.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Report:
    """`latency_ms` has the quantiles of the answers with status 200; `answers` counts statuses,
    and under 0 the connections that broke."""

    connections: int
    seconds: float
    images_per_second: float
    latency_ms: dict[str, float]
    answers: dict[int, int]


async def closed_loop(
    url: str, images: Sequence[bytes], *, connections: int, seconds: float, warm_up: float = 1.0
) -> Report:
    """Sends `images` in turn to `url` over kept-alive connections for `seconds`.

    Answers in the first `warm_up` seconds are not counted.

    Raises:
        ConfigError: the URL is no http:// URL, or nothing answers there.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"{url}: must be an http:// URL")
    host, port = parts.hostname, parts.port or 80
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    requests = cycle(_request(host, target, image) for image in images)
    begin = time.perf_counter() + warm_up
    end = begin + seconds
    latencies: list[float] = []
    answers: Counter[int] = Counter()

    async def connection() -> None:
        while time.perf_counter() < end:
            reader, writer = await asyncio.open_connection(host, port)
            try:
                while (sent := time.perf_counter()) < end:
                    writer.write(next(requests))
                    status = await _read_answer(reader)
                    now = time.perf_counter()
                    if begin <= now < end:
                        answers[status] += 1
                        if status == 200:
                            latencies.append(now - sent)
            except (asyncio.IncompleteReadError, ConnectionError, ValueError):
                answers[0] += 1
            finally:
                writer.close()

    try:
        await asyncio.gather(*(connection() for _ in range(connections)))
    except OSError as error:
        raise ConfigError(f"{url}: {error.strerror or error}") from None
    quantiles = np.quantile(latencies, (0.5, 0.95, 0.99, 1.0)) * 1000 if latencies else [0.0] * 4
    return Report(
        connections=connections,
        seconds=seconds,
        images_per_second=round(answers[200] / seconds, 1),
        latency_ms={
            name: round(float(value), 3)
            for name, value in zip(("p50", "p95", "p99", "max"), quantiles, strict=True)
        },
        answers=dict(answers),
    )


def _request(host: str, target: str, body: bytes) -> bytes:
    head = (
        f"POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _read_answer(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    await reader.readexactly(int(headers["content-length"]))
    if headers.get("connection") == "close":
        raise ConnectionResetError
    return int(head[0].split(" ")[1])
