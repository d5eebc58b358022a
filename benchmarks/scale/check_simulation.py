"""How far the simulation is off, for the one host that can be measured here.

python -m benchmarks.scale.check_simulation --output benchmarks/results/simulation.json

For each host: the service starts and says how long its batches take; one connection shows what
decoding and the event loop take; 16 and 64 connections show its capacity. Then open loops at four
shares of the capacity are measured and simulated, with the same times of arrival. The generator
shares the machine's CPUs with the service. Nothing is fitted to the loads that are compared.

One host has a device that computes nothing and leaves the CPUs alone, as a GPU does; the others
are ResNets on the CPUs, which decoding, the event loop and the generator want as well.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.common import images as made
from benchmarks.common.metrics import settled
from benchmarks.common.process import Started, started
from benchmarks.common.progress import say
from benchmarks.scale.simulation import Fleet, Host, Outcome, simulate
from service.cli.load.document import as_text
from service.cli.load.environment import machine, versions
from service.cli.load.report import Report, Run
from service.cli.load.runs import arrival_times, run_load
from service.cli.load.target import Target

SHARES = (0.3, 0.6, 0.8, 1.2)
CONNECTIONS = (16, 64)
# More than any queue holds: else callers would wait for a connection.
OPEN_CONNECTIONS = 2048
WARM_UP = 2.0
DECODE_THREADS = 2
# Of the accepting process's CPU for a refusal, as RELIABILITY.md has it.
REFUSAL = 86e-6
# The standard normal distribution's 99th percentile.
Z99 = statistics.NormalDist().inv_cdf(0.99)
COMPARED = ("images_per_second", "p50_ms", "p99_ms", "batch_size", "refused_share")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: `seconds` for each load, callers who wait for `patience` seconds.

    `inline`: images so small that the event loop decodes them; `threads` of the engine on the
    CPUs, 0 if it leaves them alone; `program` is what Python is told to run.
    """

    name: str
    model: str
    images: Sequence[bytes]
    inline: bool
    threads: int
    patience: float
    seconds: float
    program: Sequence[str] = ("-m", "service.cli")


def plans(seconds: float) -> list[Plan]:
    cpus = len(os.sched_getaffinity(0))
    small, photos = made.small(32), made.photos(16)
    sleeping = ("-m", "benchmarks.scale.sleeping_engine")
    fewer = max(1, cpus - 1)
    return [
        Plan("a device of its own", "random:resnet20", small, True, 0, 1.0, seconds, sleeping),
        Plan("ResNet-20", "builtin:resnet20-cifar10", small, True, fewer, 0.3, seconds / 2),
        Plan("ResNet-50", "random:resnet50", photos, False, cpus, 2.0, seconds),
    ]


def measure(plan: Plan) -> dict[str, Any]:
    """Both sides of `plan` and their difference, for JSON."""
    arguments = ["--model", plan.model, "--workers", "1"]
    threads = {
        "RESNET_SERVE_DECODE_THREADS": str(DECODE_THREADS),
        "RESNET_SERVE_ENGINE_THREADS": str(max(1, plan.threads)),
    }
    with (
        tempfile.TemporaryDirectory() as cache,
        started(arguments, plan.images[0], Path(cache), program=plan.program, **threads) as service,
    ):
        target = Target.of(service.url, plan.images)
        host = calibrated(service, target, plan)
        capacity = 0.0
        for connections in CONNECTIONS:
            say(f"{plan.name}: {connections} connections")
            report = run_load(target, Run(connections, plan.seconds / 4))
            capacity = max(capacity, report.images_per_second)
        hurried = Target.of(
            service.url, plan.images, headers=[f"X-Request-Timeout-Ms: {plan.patience * 1000:g}"]
        )
        loads = [compare(service, plan, hurried, host, share, capacity) for share in SHARES]
    return {
        "name": plan.name,
        "model": plan.model,
        "seconds": plan.seconds,
        "patience_s": plan.patience,
        "host": asdict(host),
        "capacity": {
            "measured": capacity,
            "simulated": round(host.capacity, 1),
            "error": relative(host.capacity, capacity),
        },
        "loads": loads,
    }


def calibrated(service: Started, target: Target, plan: Plan) -> Host:
    """The host as one connection shows it, to which nothing else happens meanwhile."""
    batch_ms = _batch_ms(service.url)
    say(f"{plan.name}: 1 connection; batches take {batch_ms} ms")
    before = _loop_seconds(service.pid)
    seconds, warm_up = plan.seconds / 4, 1.0
    report = run_load(target, Run(1, seconds, warm_up=warm_up))
    requests = report.images_per_second * (seconds + warm_up)
    loop = (_loop_seconds(service.pid) - before) / requests
    client = report.generator_cpu / report.images_per_second
    phases = report.phases_ms
    decode = 0.0 if plan.inline else phases["decode"]["p50"] / 1000
    share = plan.threads / len(os.sched_getaffinity(0))
    return Host(
        {size: took / 1000 for size, took in batch_ms.items()},
        decode_slots=0 if plan.inline else DECODE_THREADS,
        decode=decode,
        loop=loop,
        refusal=REFUSAL,
        slowdown=(decode + loop + client) * share,
        spread=math.log(phases["inference"]["p99"] / phases["inference"]["p50"]) / Z99,
        timeout=plan.patience,
    )


def _batch_ms(url: str) -> dict[int, float]:
    parts = urlsplit(url)
    with urllib.request.urlopen(f"http://{parts.netloc}/v1/models", timeout=60) as answer:
        (model,) = json.load(answer)["models"]
    return {int(size): float(took) for size, took in model["batch_ms"].items()}


def _loop_seconds(pid: int) -> float:
    """CPU seconds of the process's first thread, which runs its event loop."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text("utf-8").split()[0]) / 1e9


def compare(
    service: Started, plan: Plan, target: Target, host: Host, share: float, capacity: float
) -> dict[str, Any]:
    """A load as measured, as simulated, and by how much the second is off."""
    rate = round(share * capacity, 1)
    say(f"{plan.name}: {share:.0%} of {capacity:g} images/s")
    before = settled(service.url)
    run = Run(OPEN_CONNECTIONS, plan.seconds, rate=rate, warm_up=WARM_UP, timeout=30.0)
    report = run_load(target, run)
    rose = {name: value - before.get(name, 0.0) for name, value in settled(service.url).items()}
    batches = rose["resnet_serve_batch_size_count"]
    due = arrival_times(rate, WARM_UP + plan.seconds, "poisson", report.run.seed)
    outcome = simulate(Fleet(host), due, WARM_UP + plan.seconds, warm_up=WARM_UP)
    measured = of_report(report, rose["resnet_serve_batch_size_sum"] / max(1.0, batches))
    simulated = of_outcome(outcome)
    return {
        "share": share,
        "rate": rate,
        "requests": sum(report.answers.values()),
        "load_average": round(os.getloadavg()[0], 2),
        "measured": measured,
        "simulated": simulated,
        "error": {name: error(name, simulated, measured) for name in COMPARED},
        "phases_ms": report.phases_ms,
    }


def of_report(report: Report, batch_size: float) -> dict[str, float]:
    return _figures(
        report.images_per_second,
        report.latency_ms,
        {str(status): count for status, count in report.answers.items()},
        batch_size,
    )


def of_outcome(outcome: Outcome) -> dict[str, float]:
    found = outcome.as_json()
    return _figures(
        found["images_per_second"], found["latency_ms"], found["answers"], found["batch_size"]
    )


def _figures(
    rate: float, latency_ms: dict[str, float], answers: dict[str, int], batch_size: float
) -> dict[str, float]:
    refused = 1 - answers.get("200", 0) / max(1, sum(answers.values()))
    return {
        "images_per_second": rate,
        "p50_ms": round(latency_ms.get("p50", 0.0), 2),
        "p99_ms": round(latency_ms.get("p99", 0.0), 2),
        "batch_size": round(batch_size, 3),
        "refused_share": round(refused, 4),
    }


def error(name: str, simulated: dict[str, float], measured: dict[str, float]) -> float | None:
    """Relative to what was measured; of a share, the difference."""
    if name == "refused_share":
        return round(simulated[name] - measured[name], 4)
    return relative(simulated[name], measured[name])


def relative(simulated: float, measured: float) -> float | None:
    return round(simulated / measured - 1, 4) if measured else None


def table(figures: dict[str, Any]) -> str:
    """Rows of a Markdown table for one model: measured, simulated, and the error."""
    capacity = figures["capacity"]
    lines = [
        f"{figures['name']}: capacity {capacity['measured']:g} images/s measured, "
        f"{capacity['simulated']:g} simulated ({capacity['error']:+.0%})",
        "",
        "| load | images/s | p50, ms | p99, ms | batch | refused |",
        "|---|---|---|---|---|---|",
    ]
    for load in figures["loads"]:
        cells = [f"{load['share']:.0%}"]
        for name in COMPARED:
            measured, simulated = load["measured"][name], load["simulated"][name]
            error = load["error"][name]
            if name == "refused_share":
                cells.append(f"{measured:.1%}, {simulated:.1%}")
            else:
                off = f" ({error:+.0%})" if error is not None else ""
                cells.append(f"{measured:.4g}, {simulated:.4g}{off}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="for each load of ResNet-50")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    parser.add_argument("--only", help="the host with this name; the others stay as they are")
    given = parser.parse_args()
    known: dict[str, Any] = {}
    if given.only and given.output.exists():
        content = json.loads(given.output.read_text("utf-8"))
        known = {figures["name"]: figures for figures in content["hosts"]}
    wanted = [plan for plan in plans(given.seconds) if given.only in (None, plan.name)]
    if not wanted:
        parser.error(f"there is no host {given.only!r}")
    for plan in wanted:
        known[plan.name] = measure(plan)
        print(table(known[plan.name]), end="\n\n", flush=True)
        content = {"machine": machine(), "versions": versions(), "hosts": [*known.values()]}
        given.output.write_text(as_text(content), "utf-8")


if __name__ == "__main__":
    main()
