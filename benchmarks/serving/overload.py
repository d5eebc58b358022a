"""Measures the service under more load than it can handle.

python -m benchmarks.serving.overload --output overload.json

For each model: closed loops find the capacity, an open loop at 80 % of it what clients see who are
not too many. Open loops at each factor then come from clients who wait five times that median: who
finds no free connection in that time leaves, and who has one says so in X-Request-Timeout-Ms.
Further closed loops, of clients who wait, show what many connections cost. Beside each load, a
process of its own probes the service; see `benchmarks.serving.beside`. The generator shares the
machine's CPUs with the service, so that at high factors both are short of them: the CPU time of
each is in the figures.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import images as made
from benchmarks.common.metrics import settled
from benchmarks.common.process import Started, cpu_seconds, peak_memory, started
from benchmarks.common.progress import say
from benchmarks.serving import refusal as refusals
from benchmarks.serving import shutdown
from benchmarks.serving.beside import beside
from benchmarks.serving.overload_table import table
from service.cli.load.document import as_text
from service.cli.load.environment import machine, versions
from service.cli.load.report import Report, Run
from service.cli.load.runs import run_load
from service.cli.load.target import Target

CONNECTIONS = (8, 16, 32, 64, 128)  # among which the capacity is found
MANY_CONNECTIONS = (64, 512, 1500)
NORMAL = 0.8  # of the capacity: busy, and not yet a growing queue
FACTORS = (2.0, 4.0, 10.0)
PATIENCE = 5.0  # times the median at NORMAL: how long clients wait
OPEN_CONNECTIONS = 2048  # more than any queue holds: else few would be refused
GRAIN_MS = 0.5  # far less than anybody's patience
GIVE_UP_SECONDS = 30.0
MIB = 2**20
MODELS = {"builtin:resnet20-cifar10": lambda: made.small(32), "random:resnet50": made.photos}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: `seconds` per load; without `patience_ms`, PATIENCE sets it."""

    model: str
    images: Sequence[bytes]
    seconds: float
    workers: int = 1
    factors: Sequence[float] = FACTORS
    patience_ms: float | None = None
    new_connections: float = 0.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """The service under load, and a file with an image for the clients beside it."""

    plan: Plan
    service: Started
    image: Path

    def load(self, run: Run, *, hurried: bool = False) -> tuple[Report, dict[str, Any]]:
        """The report of a run, and what was seen of the service meanwhile.

        `hurried` clients tell the service how long they wait.
        """
        headers = [f"X-Request-Timeout-Ms: {run.patience_ms}"] if hurried else []
        target = Target.of(self.service.url, self.plan.images, headers=headers)
        say(f"{self.plan.model}: {run.load}")
        before = settled(self.service.url)
        with beside(self.service.url, self.image) as seen:
            cpu = cpu_seconds(self.service.pid)
            report = run_load(target, run)
            cpu_after = cpu_seconds(self.service.pid)
        rose = {
            name: value - before.get(name, 0.0) for name, value in settled(self.service.url).items()
        }
        user, system = (after - since for after, since in zip(cpu_after, cpu, strict=True))
        figures = _figures(report, rose, seen) | {
            "cpu_seconds": {"service_user": round(user, 2), "service_system": round(system, 2)},
            "peak_memory_mib": round(peak_memory(self.service.pid) / MIB, 1),
        }
        return report, figures

    def closed(self, connections: int) -> dict[str, Any]:
        run = Run(connections, self.plan.seconds, timeout=GIVE_UP_SECONDS)
        _, figures = self.load(run)
        return {"connections": connections} | figures

    def open(self, factor: float, capacity: float, patience_ms: float | None) -> dict[str, Any]:
        # Every request counts, so that both sides' sums can be compared.
        run = Run(
            OPEN_CONNECTIONS,
            self.plan.seconds,
            rate=round(factor * capacity, 1),
            warm_up=0.0,
            # A client that gave up sooner would look like one that got no response.
            timeout=GIVE_UP_SECONDS + (patience_ms or 0.0) / 1000,
            slo_ms=patience_ms,
            patience_ms=patience_ms,
            new_connections=self.plan.new_connections,
            grain_ms=GRAIN_MS,
        )
        report, figures = self.load(run, hurried=patience_ms is not None)
        good = report.images_per_second if report.goodput is None else report.goodput
        return {
            "factor": factor,
            "rate": run.rate,
            "goodput_share": round(good / capacity, 3),
        } | figures


def measure(plan: Plan) -> dict[str, Any]:
    """All figures of `plan`, for JSON."""
    arguments = ["--model", plan.model, "--workers", str(plan.workers)]
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image"
        image.write_bytes(plan.images[0])
        with started(arguments, plan.images[0], Path(folder)) as service:
            loaded = Loaded(plan, service, image)
            closed = [loaded.closed(count) for count in CONNECTIONS]
            capacity, patience_ms, normal = _capacity(loaded, closed)
            over = [loaded.open(factor, capacity, patience_ms) for factor in plan.factors]
            many = [loaded.closed(count) for count in MANY_CONNECTIONS]
        refusal = refusals.cost(plan.images, plan.workers, plan.seconds, Path(folder))
        ends = shutdown.seconds_to_end(plan.model, plan.workers, plan.images[0], Path(folder))
    return {
        "model": plan.model,
        "workers": plan.workers,
        "images": len(plan.images),
        "seconds": plan.seconds,
        "new_connections": plan.new_connections,
        "capacity": capacity,
        "patience_ms": patience_ms,
        "loads": [normal, *over],
        "closed": closed,
        "many_connections": many,
        "refusal": refusal,
        "seconds_to_end": ends,
    }


def _capacity(
    loaded: Loaded, closed: Sequence[dict[str, Any]]
) -> tuple[float, float, dict[str, Any]]:
    """The most images per second at a median that clients have the patience for; that patience in
    milliseconds, and the load at NORMAL.

    Throughput that more connections add only by making each wait longer does not count as
    capacity: clients with this patience would have left.

    Raises:
        SystemExit: no number of connections has such a median.
    """
    given = loaded.plan.patience_ms
    for capacity, median in fastest_within(closed, given):
        normal = loaded.open(NORMAL, capacity, None)
        patience_ms = given or round(PATIENCE * normal["latency_ms"].get("p50", 0.0), 3)
        if median <= patience_ms:
            return capacity, patience_ms, normal
    medians = {each["connections"]: each["latency_ms"].get("p50") for each in closed}
    raise SystemExit(f"no number of connections has a median within the patience: {medians} ms")


def fastest_within(
    closed: Sequence[dict[str, Any]], patience_ms: float | None
) -> list[tuple[float, float]]:
    """Images per second and medians in milliseconds, of closed loops whose median is within the
    patience; the fastest first."""
    found = [
        (each["images_per_second"], each["latency_ms"]["p50"])
        for each in closed
        if each["latency_ms"]
    ]
    return sorted((each for each in found if each[1] <= (patience_ms or math.inf)), reverse=True)


def _figures(report: Report, rose: dict[str, float], seen: dict[str, Any]) -> dict[str, Any]:
    refused = {
        name.removeprefix("refusals:"): int(count)
        for name, count in rose.items()
        if name.startswith("refusals:") and count
    }
    told = sum(count for status, count in report.answers.items() if status not in (0, 200))
    polite = seen["polite_client"]["answers"]
    told += sum(count for status, count in polite.items() if status not in ("0", "200"))
    return {
        "images_per_second": report.images_per_second,
        "latency_ms": report.latency_ms,
        "answers": {str(status): count for status, count in report.answers.items()},
        "late": report.late or 0,
        "sent": report.sent,
        "unanswered": report.answers.get(0, 0),
        "no_connection": report.no_connection,
        "generator_late": report.generator_late,
        "refused_ms": {str(status): ms for status, ms in report.refused_ms.items()},
        "refused_by_reason": refused,
        "refused_as_clients_saw": told,
        "computed_for_nobody": int(
            rose["resnet_serve_batch_size_sum"] - rose["resnet_serve_images_total"]
        ),
        "phases_ms": report.phases_ms,
        "generator_cpu": report.generator_cpu,
        "generator_us": report.generator_us,
    } | seen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", choices=MODELS, help="default: each of them")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each load")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--factors", type=float, nargs="+", default=FACTORS, help="of the capacity")
    parser.add_argument(
        "--patience-ms", type=float, help=f"default: {PATIENCE:g} times the median at {NORMAL:g}x"
    )
    parser.add_argument(
        "--new-connections",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the requests that each open a connection of their own, from 0 to 1",
    )
    parser.add_argument("--output", type=Path, help="a JSON file")
    parser.add_argument("--json", action="store_true", help="print JSON, not tables")
    given = parser.parse_args()
    found = []
    for model in given.model or MODELS:
        plan = Plan(
            model,
            MODELS[model](),
            given.seconds,
            given.workers,
            given.factors,
            given.patience_ms,
            given.new_connections,
        )
        found.append(measure(plan))
        if not given.json:
            print(table(found[-1]), flush=True)
    text = as_text({"machine": machine(), "versions": versions(), "models": found})
    if given.output:
        given.output.write_text(text, "utf-8")
    if given.json:
        print(text, end="")


if __name__ == "__main__":
    main()
