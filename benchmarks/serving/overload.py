"""What the service does when twice and ten times as much comes as it can answer.

python -m benchmarks.serving.overload --output overload.json

For each model: closed loops find the capacity, an open loop at 80 % of it what callers see who are
not too many; then open loops at 2x and 10x come from callers who wait five times that median, and
say so. Beside each load, one more caller does as Retry-After says, and the metrics are read. The
generator shares the machine's CPUs with the service, so that at 10x both are short of them.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.common import images as made
from benchmarks.common.metrics import counts, settled
from benchmarks.common.process import Started, peak_memory, started
from benchmarks.common.progress import say
from service.cli.load.document import as_text
from service.cli.load.environment import machine, versions
from service.cli.load.report import Report, Run
from service.cli.load.runs import run_load
from service.cli.load.target import Target

CONNECTIONS = (16, 64)
NORMAL = 0.8  # of the capacity: busy, and not yet a growing queue
FACTORS = (2.0, 10.0)
PATIENCE = 5.0  # times the median at NORMAL: how long callers wait
# More than any queue holds: else callers would wait for a connection, and none be refused.
OPEN_CONNECTIONS = 2048
LOOK_SECONDS = 0.25
GIVE_UP_SECONDS = 30.0
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure; `seconds` for each load."""

    model: str
    images: Sequence[bytes]
    seconds: float
    arguments: Sequence[str] = ()


@dataclass(slots=True)
class Beside:
    """What is seen beside a load: the deepest queue, and a caller's luck who does as
    Retry-After says. `statuses` counts what that caller got."""

    url: str
    image: bytes
    deepest: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    without_wait: int = 0
    served_after_wait: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Beside:
        self._threads = [threading.Thread(target=each) for each in (self._look, self._ask)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _look(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            depth = counts(self.url)["resnet_serve_queue_depth"]
            self.deepest = max(self.deepest, depth)

    def _ask(self) -> None:
        waited = False
        while not self._ended.is_set():
            status, wait = self._once()
            self.statuses[status] += 1
            self.served_after_wait += waited and status == 200
            waited = status in (429, 503)
            if waited and wait:
                self.waits.append(float(wait))
            self.without_wait += waited and not wait
            self._ended.wait(float(wait) if waited and wait else LOOK_SECONDS)

    def _once(self) -> tuple[int, str]:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        try:
            connection.request("POST", "/v1/classify", self.image)
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.headers.get("Retry-After", "")
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


def measure(plan: Plan) -> dict[str, Any]:
    """All figures of `plan`, for JSON."""
    with (
        tempfile.TemporaryDirectory() as cache,
        started(["--model", plan.model, *plan.arguments], plan.images[0], Path(cache)) as service,
    ):
        target = Target.of(service.url, plan.images)
        capacity = 0.0
        for connections in CONNECTIONS:
            say(f"{plan.model}: {connections} connections")
            report = run_load(target, Run(connections, plan.seconds))
            capacity = max(capacity, report.images_per_second)
        if not capacity:
            raise SystemExit(f"no image was answered with 200: {report.answers}")
        normal = _load(service, plan, target, NORMAL, capacity, None)
        patience_ms = round(PATIENCE * normal["latency_ms"]["p50"], 3)
        hurried = Target.of(
            service.url, plan.images, headers=[f"X-Request-Timeout-Ms: {patience_ms}"]
        )
        over = [_load(service, plan, hurried, by, capacity, patience_ms) for by in FACTORS]
    return {
        "model": plan.model,
        "arguments": list(plan.arguments),
        "images": len(plan.images),
        "seconds": plan.seconds,
        "capacity": capacity,
        "patience_ms": patience_ms,
        "loads": [normal, *over],
    }


def _load(
    service: Started,
    plan: Plan,
    target: Target,
    factor: float,
    capacity: float,
    patience_ms: float | None,
) -> dict[str, Any]:
    say(f"{plan.model}: {factor:g} x {capacity:g} images/s")
    before = settled(service.url)
    with Beside(service.url, plan.images[0]) as beside:
        # Every request counts, so that both sides' sums can be compared.
        run = Run(
            OPEN_CONNECTIONS,
            plan.seconds,
            rate=round(factor * capacity, 1),
            warm_up=0.0,
            # Who gave up sooner would look like a caller whom the service forgot.
            timeout=GIVE_UP_SECONDS + (patience_ms or 0.0) / 1000,
            slo_ms=patience_ms,
        )
        report = run_load(target, run)
    rose = {name: value - before.get(name, 0.0) for name, value in settled(service.url).items()}
    return _figures(report, beside, rose, factor, capacity) | {
        "peak_memory_mib": round(peak_memory(service.pid) / MIB, 1)
    }


def _figures(
    report: Report, beside: Beside, rose: dict[str, float], factor: float, capacity: float
) -> dict[str, Any]:
    good = report.images_per_second if report.goodput is None else report.goodput
    refused = {
        name.removeprefix("refusals:"): int(count)
        for name, count in rose.items()
        if name.startswith("refusals:") and count
    }
    seen = sum(count for status, count in report.answers.items() if status not in (0, 200))
    seen += sum(count for status, count in beside.statuses.items() if status != 200)
    return {
        "factor": factor,
        "rate": report.run.rate,
        "goodput_share": round(good / capacity, 3),
        "latency_ms": report.latency_ms,
        "answers": {str(status): count for status, count in report.answers.items()},
        "unanswered": report.answers.get(0, 0),
        "refused_ms": {str(status): ms for status, ms in report.refused_ms.items()},
        "refused_by_reason": refused,
        "refused_as_callers_saw": seen,
        "beside": beside.as_json(),
        "deepest_queue": beside.deepest,
        "computed_for_nobody": int(
            rose["resnet_serve_batch_size_sum"] - rose["resnet_serve_images_total"]
        ),
        "phases_ms": report.phases_ms,
        "generator_cpu": report.generator_cpu,
    }


def table(figures: dict[str, Any]) -> str:
    """Rows of a Markdown table for one model; latencies as p50 / p99 in ms."""

    def pair(ms: dict[str, float] | None) -> str:
        return f"{ms['p50']:.0f} / {ms['p99']:.0f}" if ms else "-"

    normal = figures["loads"][0]
    lines = [
        f"{figures['model']}: {figures['capacity']:g} images/s, "
        f"callers wait {figures['patience_ms']:g} ms",
        "",
        "| load | goodput | accepted, ms | against 0.8x | 429, ms | 504, ms | refused by reason "
        "| unanswered | deepest queue | computed for nobody | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for load in figures["loads"]:
        against = load["latency_ms"].get("p99", 0.0) / normal["latency_ms"]["p99"]
        cells = [
            f"{load['factor']:g}x",
            f"{load['goodput_share']:.0%}",
            pair(load["latency_ms"]),
            f"{against:.2f}x at p99",
            pair(load["refused_ms"].get("429")),
            pair(load["refused_ms"].get("504")),
            ", ".join(f"{n} {reason}" for reason, n in load["refused_by_reason"].items()) or "-",
            str(load["unanswered"]),
            f"{load['deepest_queue']:g}",
            str(load["computed_for_nobody"]),
            f"{load['peak_memory_mib']:g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="for each load")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    given = parser.parse_args()
    found = []
    for model, images in (
        ("builtin:resnet20-cifar10", made.small(32)),
        ("random:resnet50", made.photos(16)),
    ):
        arguments = ("--workers", str(given.workers))
        figures = measure(Plan(model, images, given.seconds, arguments))
        print(table(figures), flush=True)
        found.append(figures)
    content = {"machine": machine(), "versions": versions(), "models": found}
    given.output.write_text(as_text(content), "utf-8")


if __name__ == "__main__":
    main()
