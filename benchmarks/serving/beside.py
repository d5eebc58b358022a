"""Watches the service during a load, from another process, as the load generator is busy.

python -m benchmarks.serving.beside http://127.0.0.1:8000/v1/classify image.png

It probes liveness and readiness, each on a new connection and at a fixed pace, as a kubelet does;
reads the depth of the queue; and sends images as a client that waits as Retry-After says. It
begins when it prints a line, ends with its standard input, and prints JSON.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.common.metrics import counts

PROBES = ("/health/live", "/health/ready")
PROBE_SECONDS = 0.05
PROBE_TIMEOUT = 5.0
LOOK_SECONDS = 0.25


@contextmanager
def beside(url: str, image: Path) -> Iterator[dict[str, Any]]:
    """Watches the service while the block runs; the figures are complete once it has ended."""
    found: dict[str, Any] = {}
    command = [sys.executable, "-m", "benchmarks.serving.beside", url, str(image)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield found
        finally:
            printed, _ = process.communicate()
    found |= json.loads(printed)


@dataclass(slots=True)
class Probes:
    """Times in seconds until a probe had its response, failed or was given up."""

    seconds: list[float] = field(default_factory=list)
    failed: int = 0

    async def send(self, host: str, port: int, path: str) -> None:
        began = time.perf_counter()
        ok = False
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                ok = b" 200 " in await reader.readline()
                writer.close()
        except (OSError, TimeoutError):
            pass
        self.failed += not ok
        self.seconds.append(time.perf_counter() - began)

    def as_json(self) -> dict[str, float]:
        return {"count": len(self.seconds), "failed": self.failed} | quantiles_ms(self.seconds)


def quantiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p99 and max in milliseconds, of at least one."""
    ordered = sorted(seconds)
    places = {"p50": len(ordered) // 2, "p99": len(ordered) * 99 // 100, "max": len(ordered) - 1}
    return {name: round(1000 * ordered[place], 3) for name, place in places.items()}


async def probe(host: str, port: int, ended: threading.Event) -> dict[str, Any]:
    """The figures of each of PROBES. One that takes long delays none of the next."""
    probes = {path: Probes() for path in PROBES}
    async with asyncio.TaskGroup() as tasks:
        due = time.perf_counter()
        while not ended.is_set():
            for path, each in probes.items():
                tasks.create_task(each.send(host, port, path))
            due += PROBE_SECONDS
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
    return {path.rpartition("/")[2]: each.as_json() for path, each in probes.items()}


@dataclass(slots=True)
class PoliteClient:
    """Sends an image at a time, and after a refusal waits as Retry-After says."""

    url: str
    image: bytes
    statuses: Counter[int] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    without_wait: int = 0
    served_after_wait: int = 0

    def run(self, ended: threading.Event) -> None:
        waited = False
        while not ended.is_set():
            status, wait = self._once()
            self.statuses[status] += 1
            self.served_after_wait += waited and status == 200
            waited = status in (429, 503)
            if waited and wait:
                self.waits.append(float(wait))
            self.without_wait += waited and not wait
            ended.wait(float(wait) if waited and wait else LOOK_SECONDS)

    def _once(self) -> tuple[int, str]:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        try:
            connection.request("POST", "/v1/classify", self.image)
            response = connection.getresponse()
            response.read()
            return response.status, response.headers.get("Retry-After", "")
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()

    def as_json(self) -> dict[str, Any]:
        return {
            "answers": {str(status): count for status, count in self.statuses.items()},
            "refused_without_retry_after": self.without_wait,
            "retry_after_s": [min(self.waits), statistics.median(self.waits), max(self.waits)]
            if self.waits
            else [],
            "answered_at_the_next_try": self.served_after_wait,
        }


def deepest_queue(url: str, ended: threading.Event, depths: list[float]) -> None:
    while not ended.wait(LOOK_SECONDS):
        depths.append(counts(url)["resnet_serve_queue_depth"])


def wait_for_the_end(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


def main() -> None:
    url, image = sys.argv[1:]
    parts = urlsplit(url)
    ended = threading.Event()
    client = PoliteClient(url, Path(image).read_bytes())
    depths = [0.0]
    threads = [
        threading.Thread(target=client.run, args=(ended,)),
        threading.Thread(target=deepest_queue, args=(url, ended, depths)),
        threading.Thread(target=wait_for_the_end, args=(ended,)),
    ]
    for thread in threads:
        thread.start()
    print("begun", flush=True)
    probes = asyncio.run(probe(parts.hostname or "", parts.port or 80, ended))
    for thread in threads:
        thread.join()
    found = {"probes": probes, "polite_client": client.as_json(), "deepest_queue": max(depths)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
