"""gRPC beside HTTP: the same images to the same service, by three ways.

python -m benchmarks.serving.remote_procedures --output benchmarks/results/epyc-zen5/grpc.json

The ways take turns in each round, in another order each time, so that the machine's drift hits all
alike. The clients are of this process and as plain as their protocols allow: bytes that were made
before, on connections that are kept. They share the CPUs with the service, and gRPC's client costs
more than that of HTTP; so the service's own CPU time is told as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc.aio

from benchmarks.common import images as made
from benchmarks.common.process import CLOCK_TICKS, started
from benchmarks.common.protobuf import field
from service.cli.load.environment import machine, versions

IN_FLIGHT = (1, 32)
ADDRESS = re.compile(r"serving gRPC on (\S+)")
# Sends one image, and returns when its response has come.
Send = Callable[[], Awaitable[None]]


def of_v1(image: bytes) -> bytes:
    return (
        b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(image), image)
    )


def of_v2(image: bytes, model: str) -> bytes:
    packed = struct.pack("<I", len(image)) + image
    tensor = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"binary_data_size": len(packed)},
    }
    parameters = {"binary_data_output": True}
    text = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    return (
        b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: a\r\n"
        b"Content-Type: application/octet-stream\r\n"
        b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n%b%b"
        % (model.encode(), len(text), len(text) + len(packed), text, packed)
    )


def of_grpc(image: bytes, model: str) -> bytes:
    tensor = field(1, b"image") + field(2, b"BYTES") + field(3, b"\x01")
    raw = field(7, struct.pack("<I", len(image)) + image)
    return field(1, model.encode()) + field(5, tensor) + raw


async def http_sender(
    host: str, port: int, requests: Sequence[bytes], ends: AsyncExitStack
) -> Send:
    reader, writer = await asyncio.open_connection(host, port)
    ends.callback(writer.close)
    turn = 0

    async def send() -> None:
        nonlocal turn
        turn += 1
        writer.write(requests[turn % len(requests)])
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"not answered: {head!r}")
        length = int(re.search(rb"(?i)\ncontent-length: (\d+)", head)[1])  # type: ignore[index]
        await reader.readexactly(length)

    return send


async def grpc_sender(method: Any, requests: Sequence[bytes]) -> Send:
    turn = 0

    async def send() -> None:
        nonlocal turn
        turn += 1
        await method(requests[turn % len(requests)])

    return send


async def turn(senders: Sequence[Send], seconds: float) -> list[float]:
    """Seconds of each image, with as many in flight as there are senders."""
    took: list[float] = []
    until = time.perf_counter() + seconds

    async def loop(send: Send) -> None:
        while (began := time.perf_counter()) < until:
            await send()
            took.append(time.perf_counter() - began)

    await asyncio.gather(*map(loop, senders))
    return took


def cpu_seconds(pid: int) -> float:
    """What a process with all its threads has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def figures(took: Sequence[float], seconds: float, cpu: float) -> dict[str, float]:
    ordered = sorted(took)
    return {
        "images_per_second": round(len(took) / seconds, 1),
        "p50_ms": round(1000 * ordered[len(took) // 2], 3),
        "p99_ms": round(1000 * ordered[len(took) * 99 // 100], 3),
        "service_cpu_microseconds": round(1e6 * cpu / len(took), 1),
    }


async def measure(
    http: tuple[str, int], address: str, pid: int, arguments: argparse.Namespace
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """The figures of each round, by way and number in flight."""
    images = made.small(32)
    model = arguments.model.rpartition(":")[2]
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        calls = [of_grpc(image, model) for image in images]
        bodies = {
            "HTTP /v1": [of_v1(image) for image in images],
            "HTTP /v2": [of_v2(image, model) for image in images],
        }

        async def senders(way: str, count: int, ends: AsyncExitStack) -> list[Send]:
            if way in bodies:
                return [await http_sender(*http, bodies[way], ends) for _ in range(count)]
            return [await grpc_sender(method, calls) for _ in range(count)]

        ways = [*bodies, "gRPC"]
        for number in range(-1, arguments.rounds):
            first = number % len(ways)
            for count in IN_FLIGHT:
                for way in ways[first:] + ways[:first]:
                    async with AsyncExitStack() as ends:
                        sending = await senders(way, count, ends)
                        before, began = cpu_seconds(pid), time.perf_counter()
                        took = await turn(sending, arguments.seconds)
                        seconds = time.perf_counter() - began
                        each = figures(took, seconds, cpu_seconds(pid) - before)
                    if number >= 0:  # The round before warms up.
                        found.setdefault(way, {}).setdefault(str(count), []).append(each)
    return found


def summary(rounds: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """The median of each figure, and its range."""
    return {
        name: {
            "median": statistics.median(each[name] for each in rounds),
            "lowest": min(each[name] for each in rounds),
            "highest": max(each[name] for each in rounds),
        }
        for name in rounds[0]
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Rows of a Markdown table."""
    lines = [
        "| way | in flight | images/s | p50, ms | p99, ms | CPU of the service, µs an image |",
        "|---|---|---|---|---|---|",
    ]
    for way, counts in found.items():
        for count, figures in counts.items():
            cells = [f"{value['median']:g}" for value in figures.values()]
            lines.append(f"| {way} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin:resnet20-cifar10", help="builtin:NAME")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each turn")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    arguments = parser.parse_args()
    serve = ("--model", arguments.model, "--engine", "eager", "--grpc-port", "0")
    environment = {"RESNET_SERVE_WORKERS": "1", "RESNET_SERVE_ENGINE_THREADS": "1"}
    with (
        tempfile.TemporaryDirectory() as cache,
        started(serve, made.small(32)[0], Path(cache), **environment) as service,
    ):
        (address,) = (match[1] for line in service.log if (match := ADDRESS.search(line)))
        parts = urlsplit(service.url)
        http = (parts.hostname or "", parts.port or 80)
        found = asyncio.run(measure(http, address, service.pid, arguments))
    summaries = {
        way: {count: summary(rounds) for count, rounds in counts.items()}
        for way, counts in found.items()
    }
    content = {
        "machine": machine(),
        "load_average": os.getloadavg(),
        "versions": versions(),
        "model": arguments.model,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "ways": summaries,
    }
    arguments.output.write_text(json.dumps(content, indent=2) + "\n")
    print(table(summaries))


if __name__ == "__main__":
    main()
