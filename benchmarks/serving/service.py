"""Measures the service whole, and each part of it alone, on this machine.

python -m benchmarks.serving.service --model builtin:resnet20-cifar10 --output results.json

In one run: the ceilings; the start, with nothing compiled and again; a closed loop for the highest
throughput; an open loop at 80 % of it for what callers see; one at twice of it for what happens
under overload, first from callers who say how long they wait for an answer, then from callers who
do not and fill the queue. The generator shares the machine's CPUs with the service.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import images as made
from benchmarks.common.process import Started, peak_memory, started
from benchmarks.common.progress import say
from service.cli.load.document import as_text, document
from service.cli.load.report import Report, Run
from service.cli.load.runs import run_load
from service.cli.load.target import Target

CONNECTIONS = (1, 16, 32, 64)
SHARE = 0.8  # of the highest throughput: busy, and not yet a growing queue
SUSTAINED = 0.95  # of the rate, to be called kept up with; arrivals vary by chance
OVERLOAD = 2.0
SLO = 5.0  # times the median at SHARE
OPEN_CONNECTIONS = 256
# More than any queue holds: else callers would wait for a connection, and none be refused.
OVERLOAD_CONNECTIONS = 2048
QUANTILES = ("p50", "p95", "p99")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure; `seconds` for each load, `ceiling_seconds` for each ceiling's figure."""

    model: str
    engine: str
    precision: str
    images: list[bytes]
    seconds: float
    ceiling_seconds: float
    warm_up: float


def main() -> None:
    given = _arguments()
    if given.images:
        images = made.read(given.images)
    else:
        images = made.photos() if given.photo else made.small(given.size)
    plan = Plan(
        model=given.model,
        engine=given.engine,
        precision=given.precision,
        images=images,
        seconds=given.seconds or (3.0 if given.short else 10.0),
        ceiling_seconds=0.5 if given.short else 3.0,
        warm_up=1.0 if given.short else 2.0,
    )
    figures, reports = measure(plan)
    given.output.write_text(as_text(figures), "utf-8")
    if given.plot:
        from service.cli.load.plot import draw

        draw(reports, given.plot, f"{plan.model} on {figures['machine']['processor']}")
    print(table(figures))


def measure(plan: Plan) -> tuple[dict[str, Any], list[Report]]:
    """All figures of `plan` for JSON, and the reports of its loads."""
    serve = ["--model", plan.model, "--engine", plan.engine, "--precision", plan.precision]
    say("ceilings")
    ceilings = _ceilings(plan)
    with tempfile.TemporaryDirectory() as cache:
        say("the first start")
        with started(serve, plan.images[0], Path(cache)) as first:
            pass
        say("the second start")
        with started(serve, plan.images[0], Path(cache)) as second:
            target = Target.of(second.url, plan.images)
            reports = _loads(plan, target)
            memory = peak_memory(second.pid)
    *closed, normal, overload, patient = reports
    best = max(report.images_per_second for report in closed)
    figures = document(target, reports) | {
        "model": plan.model,
        "engine": plan.engine,
        "precision": plan.precision,
        "image_bytes": round(sum(map(len, plan.images)) / len(plan.images)),
        "ceilings": ceilings,
        "images_per_second": best,
        "share_of_ceiling": _shares(best, ceilings),
        "sustained": normal.images_per_second >= SUSTAINED * (normal.run.rate or 0.0),
        "overload": _overload(overload, overload.goodput or 0.0, best),
        "overload_without_deadlines": _overload(patient, patient.images_per_second, best),
        "start_seconds": _start_seconds(first, second),
        "peak_memory_mib": round(memory / 2**20, 1),
        "p99_over_p50": _tail(normal),
    }
    return figures, reports


def _ceilings(plan: Plan) -> dict[str, Any]:
    # In a process of its own: torch's threads would disturb the generator's.
    with tempfile.TemporaryDirectory() as folder:
        for index, image in enumerate(plan.images):
            (Path(folder) / f"{index:03}").write_bytes(image)
        command = [sys.executable, "-m", "benchmarks.serving.ceilings", f"--model={plan.model}"]
        command += [f"--engine={plan.engine}", f"--precision={plan.precision}"]
        command += [f"--seconds={plan.ceiling_seconds}", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _loads(plan: Plan, target: Target) -> list[Report]:
    """A closed loop for each of CONNECTIONS, an open loop at SHARE, two at OVERLOAD."""
    reports = []
    for count in CONNECTIONS:
        say(f"{count} connections")
        reports.append(run_load(target, Run(count, plan.seconds, warm_up=plan.warm_up)))
    best = max(report.images_per_second for report in reports)
    if not best:
        raise SystemExit(f"no image was answered with 200: {reports[-1].answers}")
    say(f"{SHARE:.0%} of {best:g} images/s")
    rate = round(SHARE * best, 1)
    normal = run_load(target, Run(OPEN_CONNECTIONS, plan.seconds, rate=rate, warm_up=plan.warm_up))
    slo_ms = max(1.0, round(SLO * normal.latency_ms.get("p50", 0.0), 3))
    hurried = Target.of(target.url, plan.images, headers=[f"X-Request-Timeout-Ms: {slo_ms}"])
    overloads = []
    # Clients also leave if they get no connection within that time.
    for callers, patience_ms, what in (
        (hurried, slo_ms, f"who wait {slo_ms:g} ms"),
        (target, None, "who just wait"),
    ):
        say(f"{OVERLOAD:g} times {best:g} images/s from callers {what}")
        run = Run(
            OVERLOAD_CONNECTIONS,
            plan.seconds,
            rate=round(OVERLOAD * best, 1),
            warm_up=plan.warm_up,
            slo_ms=slo_ms,
            patience_ms=patience_ms,
        )
        overloads.append(run_load(callers, run))
    return [*reports, normal, *overloads]


def _overload(report: Report, goodput: float, best: float) -> dict[str, Any]:
    return {
        "goodput_share": round(goodput / best, 3),
        "slo_ms": report.run.slo_ms,
        "refused_ms": {str(status): ms for status, ms in report.refused_ms.items()},
    }


def _shares(best: float, ceilings: dict[str, Any]) -> dict[str, float]:
    return {
        "engine": round(best / max(ceilings["engine"].values()), 3),
        "decode_one_thread": round(best / ceilings["decode_one_thread"], 3),
        "echo": round(best / max(ceilings["echo"].values()), 3),
    }


def _start_seconds(first: Started, second: Started) -> dict[str, float]:
    return {"first": round(first.seconds, 2), "second": round(second.seconds, 2)}


def _tail(report: Report) -> float | None:
    ms = report.latency_ms
    return round(ms["p99"] / ms["p50"], 2) if ms.get("p50") else None


def table(figures: dict[str, Any]) -> str:
    """The figures of `measure` for people."""
    ceilings, shares = figures["ceilings"], figures["share_of_ceiling"]
    lines = [
        f"{figures['model']}, {figures['images']} images of {figures['image_bytes']:,} bytes, "
        f"{figures['machine']['cpus']} x {figures['machine']['processor']}",
        "",
        f"{'load':<18}{'images/s':>10}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}  answers",
    ]
    for run in figures["runs"]:
        load = f"{run['rate']:g}/s" if "rate" in run else f"{run['connections']} at a time"
        cells = (f"{run['latency_ms'].get(name, float('nan')):>10.2f}" for name in QUANTILES)
        answers = ", ".join(f"{n} x {status}" for status, n in run["answers"].items())
        lines.append(f"{load:<18}{run['images_per_second']:>10}{''.join(cells)}  {answers}")
    size, engine = max(ceilings["engine"].items(), key=lambda item: float(item[1]))
    lines += [
        "",
        f"highest            {figures['images_per_second']:>9} images/s",
        f"  of the engine    {shares['engine']:>9.1%} of {engine:g} (batches of {size})",
        f"  of a decoder     {shares['decode_one_thread']:>9.1%} of "
        f"{ceilings['decode_one_thread']:g} (one thread)",
        f"  of HTTP          {shares['echo']:>9.1%} of {max(ceilings['echo'].values()):g}",
        *_overload_lines(figures["overload"], "in time"),
        *_overload_lines(figures["overload_without_deadlines"], "at all"),
        f"start              {figures['start_seconds']['first']:>9} s, then "
        f"{figures['start_seconds']['second']} s",
        f"peak memory        {figures['peak_memory_mib']:>9} MiB",
    ]
    if not figures["sustained"]:
        # The median is then that of a queue which grew for as long as the run lasted.
        lines.append(f"{SHARE:.0%} of the highest was not kept up: the SLO means nothing")
    return "\n".join(lines)


def _overload_lines(overload: dict[str, Any], when: str) -> list[str]:
    limit = f" ({overload['slo_ms']:,.1f} ms)" if when == "in time" else ""
    return [
        f"at {OVERLOAD:g}x              {overload['goodput_share']:>9.1%} answered {when}{limit}",
        *(
            f"  {status} after       {ms['p50']:>9.2f} ms, p99 {ms['p99']:.2f}"
            for status, ms in overload["refused_ms"].items()
        ),
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin:resnet20-cifar10", help="a SPEC")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--size", type=int, default=32, help="PNGs with sides of so many pixels")
    source.add_argument("--photo", action="store_true", help="JPEGs like photographs, 500 x 375")
    source.add_argument("--images", type=Path, metavar="DIR", help="the files of a folder")
    parser.add_argument("--seconds", type=float, help="for each load; default 10")
    parser.add_argument("--short", action="store_true", help="done in about a minute")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    parser.add_argument("--plot", type=Path, help="a .png or .svg file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
