"""What metrics and traces cost: CPU time of the service for each request.

python -m benchmarks.serving.observability --output benchmarks/results/observability.json

Services with tracing off and on, for different shares of the requests, are all up at once and take
turns under the same load, in each round in another order: so the machine's drift hits all alike,
and what is compared is of one round. The CPU time is the service process's own, user and system,
with the thread that sends spans; a collector that only reads them runs in this process.

An engine's own CPU time varies by more than that. So what tracing adds to a request is measured by
itself as well, in this process, in as many rounds, and so are metrics, which cannot be turned off.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import threading
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks.common import images as made
from benchmarks.common.process import Started, started
from service.cli.load.document import as_text
from service.cli.load.environment import machine, versions
from service.cli.load.report import Run
from service.cli.load.runs import run_load
from service.cli.load.target import Target
from service.config.settings import Settings
from service.http.tracing import Tracing, TracingMiddleware
from service.inference.jobs import Job
from service.metrics import PHASES, Metrics

CONNECTIONS = 8
SHARES = {"off": None, "0": 0.0, "0.1": 0.1, "1": 1.0}
OFF = "off"
# Long enough for the last spans of a load to be sent while it is still measured.
SEND_SECONDS = 0.5
# One thread, and no larger batches in one service than in another.
ENGINE = {"RESNET_SERVE_ENGINE_THREADS": "1", "RESNET_SERVE_MAX_BATCH": "1"}
SCOPE: dict[str, Any] = {
    "type": "http",
    "method": "POST",
    "path": "/v1/classify",
    "scheme": "http",
    "http_version": "1.1",
    "server": ("127.0.0.1", 8000),
    "headers": [(b"user-agent", b"benchmark"), (b"content-type", b"image/png")],
}
CALLS = 20_000
REQUESTS = 2_000
REPEATS = 7
SCRAPED_MODELS = 4
TICK_MICROSECONDS = 1e6 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Turn:
    """One service's turn under load."""

    requests_per_second: float
    cpu_microseconds: float  # for each request


@contextmanager
def sink() -> Iterator[str]:
    """The URL of a collector that throws everything away."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def cpu_microseconds(pid: int) -> float:
    """What a process with all its threads has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_MICROSECONDS


def turn(service: Started, images: Sequence[bytes], seconds: float) -> Turn:
    target = Target.of(service.url, images)
    before = cpu_microseconds(service.pid)
    report = run_load(target, Run(CONNECTIONS, seconds, warm_up=0.0))
    time.sleep(2 * SEND_SECONDS)
    used = cpu_microseconds(service.pid) - before
    if set(report.answers) != {200}:
        raise SystemExit(f"not every request was answered: {report.answers}")
    return Turn(report.images_per_second, used / sum(report.answers.values()))


def measure(model: str, rounds: int, seconds: float) -> dict[str, list[Turn]]:
    """The turns of each service, one in each round."""
    images = made.small(32)
    found: dict[str, list[Turn]] = {name: [] for name in SHARES}
    with tempfile.TemporaryDirectory() as cache, sink() as url, ExitStack() as stack:
        services = {}
        for name, share in SHARES.items():
            traced = {
                "RESNET_SERVE_OTLP_ENDPOINT": url,
                "RESNET_SERVE_TRACE_RATIO": str(share),
                "OTEL_BSP_SCHEDULE_DELAY": str(round(SEND_SECONDS * 1000)),
            }
            environment = {"RESNET_SERVE_WORKERS": "1"} | ENGINE
            environment |= traced if share is not None else {}
            arguments = ("--model", model, "--engine", "eager")
            running = started(arguments, images[0], Path(cache), **environment)
            services[name] = stack.enter_context(running)
            turn(services[name], images, seconds)  # Warms up.
        names = list(SHARES)
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                found[name].append(turn(services[name], images, seconds))
    return found


def median_and_range(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 1),
        "lowest": round(min(values), 1),
        "highest": round(max(values), 1),
    }


def compared(found: dict[str, list[Turn]]) -> dict[str, Any]:
    """The figures of each service, and how far each is from tracing off in the same round."""
    return {
        name: {
            "requests_per_second": median_and_range([t.requests_per_second for t in turns]),
            "cpu_microseconds": median_and_range([t.cpu_microseconds for t in turns]),
            "more_cpu_microseconds_than_off": median_and_range(
                [
                    t.cpu_microseconds - off.cpu_microseconds
                    for t, off in zip(turns, found[OFF], strict=True)
                ]
            ),
        }
        for name, turns in found.items()
    }


def microseconds(call: Callable[[], object], calls: int = CALLS) -> float:
    """Of one call: the least of several repeats, the others of which were disturbed."""
    times = timeit.repeat(call, number=calls, repeat=REPEATS, timer=time.process_time)
    return round(min(times) / calls * 1e6, 2)


def of_tracing(rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds of CPU that tracing adds to a request of one image, by the share traced: its
    four spans, and their sending."""
    found: dict[str, list[float]] = {name: [] for name in SHARES if name != OFF}
    with sink() as url:
        for _ in range(rounds):
            without = asyncio.run(_answered(_endpoint(None), REQUESTS))
            for name, each in found.items():
                tracing = Tracing(Settings(otlp_endpoint=url, trace_ratio=SHARES[name]))
                app = TracingMiddleware(_endpoint(tracing), tracing)
                began = time.process_time()
                asyncio.run(_answered(app, REQUESTS))
                tracing.close(30.0)
                used = time.process_time() - began
                each.append((used - without) / REQUESTS * 1e6)
    return {name: median_and_range(each) for name, each in found.items()}


def _endpoint(tracing: Tracing | None) -> ASGIApp:
    """Answers as if an image had been computed."""
    card = {"engine": "eager", "precision": "fp32", "device": "cpu"}
    model: Any = SimpleNamespace(name="m", describe=lambda: card)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        job: Job[Any, Any] = Job()
        job.admitted = time.perf_counter()
        job.decoding = job.decoded = job.started = job.finished = job.admitted
        job.decoded += 1e-4
        if tracing is not None:
            tracing.follow(model, job, None)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


async def _answered(app: ASGIApp, requests: int) -> float:
    """Seconds of CPU for so many requests."""

    async def nothing(_: Message) -> None:
        pass

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    began = time.process_time()
    for number in range(requests):
        await app(SCOPE | {"state": {}}, receive, nothing)
        if number % 100 == 0:
            await asyncio.sleep(0.01)  # As in a service, the sending thread has its turns.
    return time.process_time() - began


def of_metrics() -> dict[str, float]:
    """Microseconds of what counts a request, and of a scrape with `SCRAPED_MODELS` models."""
    metrics = Metrics()
    for number in range(SCRAPED_MODELS):
        metrics.watch_model(f"m{number}", ["cpu"], 256, depth=lambda: 0, ready=lambda: True)
    seconds = {phase: 0.0031 * (number + 1) for number, phase in enumerate(PHASES)}
    batches = metrics.batch_size.labels("m0")
    exemplar = {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "span_id": "00f067aa0ba902b7"}

    def request(labels: dict[str, str] | None = None) -> None:
        metrics.in_flight.inc()
        batches.observe(1)
        metrics.classified("m0", seconds, labels)
        metrics.responded("/v1/classify", 200)
        metrics.in_flight.dec()

    return {
        "request": microseconds(request),
        "request_with_exemplars": microseconds(lambda: request(exemplar)),
        "prediction": microseconds(lambda: metrics.predicted("m0", 3, "cat", 0.93)),
        "refusal": microseconds(lambda: metrics.refused("m0", "queue_full")),
        "scrape_as_text": microseconds(metrics.render, 20),
        "scrape_as_openmetrics": microseconds(lambda: metrics.render(openmetrics=True), 20),
    }


def table(
    tracing: dict[str, Any], alone: dict[str, dict[str, float]], metrics: dict[str, float]
) -> str:
    """Rows of three Markdown tables."""
    lines = ["| traced share | CPU that it adds, µs a request (lowest to highest) |", "|---|---|"]
    for name, added in alone.items():
        ends = f"{added['lowest']:.0f} to {added['highest']:.0f}"
        lines.append(f"| {name} | {added['median']:.0f} ({ends}) |")
    lines += [
        "",
        "| traced share | requests/s | CPU, µs a request | more than off (lowest to highest) |",
        "|---|---|---|---|",
    ]
    for name, figures in tracing.items():
        rate, cpu, more = (each for each in figures.values())
        extra = f"{more['median']:+.0f} ({more['lowest']:+.0f} to {more['highest']:+.0f})"
        extra = "-" if name == OFF else extra
        lines.append(f"| {name} | {rate['median']:.0f} | {cpu['median']:.0f} | {extra} |")
    lines += ["", "| of metrics | µs |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value:g} |" for name, value in metrics.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin:resnet20-cifar10", help="a SPEC")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each turn")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    given = parser.parse_args()
    metrics, alone = of_metrics(), of_tracing(given.rounds)
    found = measure(given.model, given.rounds, given.seconds)
    tracing = compared(found)
    print(table(tracing, alone, metrics), flush=True)
    content = {
        "machine": machine(),
        "load_average": os.getloadavg(),  # Of one that others used too, its times say less.
        "versions": versions(),
        "model": given.model,
        "connections": CONNECTIONS,
        "rounds": given.rounds,
        "seconds": given.seconds,
        "tracing_alone_cpu_microseconds": alone,
        "tracing": tracing,
        "metrics_microseconds": metrics,
    }
    given.output.write_text(as_text(content), "utf-8")


if __name__ == "__main__":
    main()
