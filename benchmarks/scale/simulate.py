"""Simulates hosts that serve one model: what callers see, and what it costs.

python -m benchmarks.scale.simulate --host t4 --hosts 10 --load 0.8 --seconds 30

`python -m benchmarks.scale.check_simulation` says how far off it is for one host that can be
measured. Large fleets: --grain 16 has 16 images come and be computed together, which takes a
sixteenth of the time and makes arrivals burstier than they are.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.scale.simulation import Fleet, Host, Scaling, arrivals, simulate
from benchmarks.scale.simulation.balancers import POLICIES

# A JPEG of 35 kB from the socket to pixels and back to JSON: CPU seconds of one hyper-thread, as
# measured here (benchmarks/results/resnet50.json, simulation.json).
IMAGE_CPU = 0.006
# NVIDIA DeepLearningExamples, ResNet-50 v1.5 for PyTorch, README of February 2021: mean latency of
# mixed-precision inference by batch size, in ms.
T4 = {1: 12.96, 2: 13.18, 4: 12.99, 8: 12.82, 16: 15.80, 32: 29.54}
V100 = {1: 12.78, 2: 13.01, 4: 13.41, 8: 13.65, 16: 14.00, 32: 15.84, 64: 23.18}
# ResNet-50 on two hyper-threads, measured here: benchmarks/results/resnet50.json.
CPU = {1: 69.0, 2: 132.5, 4: 253.2}


def _seconds(milliseconds: dict[int, float]) -> dict[int, float]:
    return {size: took / 1000 for size, took in milliseconds.items()}


# By GPU: CPU threads as the cloud's smallest machine with one has, and enough of them.
HOSTS = {
    "t4": Host(_seconds(T4), in_flight=2, decode_slots=8, decode=IMAGE_CPU, usd_per_hour=0.752),
    "t4-4cpu": Host(
        _seconds(T4), in_flight=2, decode_slots=4, decode=IMAGE_CPU, usd_per_hour=0.526
    ),
    "v100": Host(_seconds(V100), in_flight=2, decode_slots=24, decode=IMAGE_CPU),
    "cpu": Host(_seconds(CPU), decode_slots=2, decode=IMAGE_CPU, slowdown=IMAGE_CPU),
}
KINDS = ("poisson", "bursts", "diurnal")


def due_times(kind: str, rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Rising times [N] from 0 to `seconds` at `rate` on average; `kind` is one of KINDS, or the
    path of a file of rates."""
    random = np.random.default_rng(seed)
    if kind == "poisson":
        rates = arrivals.steady(rate)
    elif kind == "bursts":
        rates = arrivals.bursts(rate, seconds, random)
    elif kind == "diurnal":
        rates = arrivals.diurnal(rate)
    else:
        rates = arrivals.trace(Path(kind), rate)
    return arrivals.times(rates, seconds, random)


def _batch_ms(text: str) -> dict[int, float]:
    """Of `1:13,8:12.8`, seconds by batch size."""
    try:
        pairs = (pair.split(":") for pair in text.split(","))
        found = {int(size): float(took) / 1000 for size, took in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError("write it as 1:13,8:12.8") from None
    if not found or min(found) < 1 or min(found.values()) <= 0:
        raise argparse.ArgumentTypeError("sizes are from 1, times above 0")
    return found


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--host", choices=HOSTS, default="t4", help="a known host, which other options change")
    add("--batch-ms", type=_batch_ms, help="by batch size, such as 1:13,8:12.8")
    add("--devices", type=_count, help="of each host")
    add("--decode-slots", type=_count, help="threads that decode")
    add("--decode-ms", type=_positive, help="of one image")
    add("--max-queue", type=_count)
    add("--timeout-ms", type=_positive, help="callers' deadline")
    add("--usd-per-hour", type=_positive, help="of one host")
    add("--hosts", type=_count, default=1)
    add("--policy", choices=POLICIES, default="power_of_two", help="of the balancers")
    add("--balancers", type=_count, default=1, help="each knows of its own requests only")
    add("--retries", type=int, default=0, help="of a caller, each after Retry-After")
    add("--mtbf-hours", type=_positive, default=math.inf, help="of one host")
    add("--detect", type=float, default=2.0, help="seconds until balancers see a failure")
    add("--cold-start", type=_positive, default=120.0, help="seconds until a new host is ready")
    add("--scale-target", type=_positive, help="unanswered requests a host; turns scaling on")
    add("--most-hosts", type=_count, default=1000, help="with --scale-target")
    add("--arrivals", default="poisson", help=f"{', '.join(KINDS)}, or a file of rates")
    add("--rate", type=_positive, help="images a second on average")
    add("--load", type=_positive, default=0.8, help="the same as a share of what all hosts can")
    add("--seconds", type=_positive, default=30.0)
    add("--warm-up", type=float, default=2.0, help="of these seconds, not counted")
    add("--slo-ms", type=_positive, default=math.inf, help="what counts as goodput")
    add("--grain", type=_count, default=1, help="images that come together")
    add("--seed", type=int, default=0)
    add("--json", action="store_true")
    given = parser.parse_args(arguments)
    if given.warm_up >= given.seconds:
        parser.error("--warm-up must be shorter than --seconds")
    return given


def _host(given: argparse.Namespace) -> Host:
    changed = {
        "batch_seconds": given.batch_ms,
        "devices": given.devices,
        "decode_slots": given.decode_slots,
        "decode": given.decode_ms and given.decode_ms / 1000,
        "max_queue": given.max_queue,
        "timeout": given.timeout_ms and given.timeout_ms / 1000,
        "usd_per_hour": given.usd_per_hour,
    }
    values: dict[str, Any] = {name: value for name, value in changed.items() if value is not None}
    return replace(HOSTS[given.host], **values)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The outcome for JSON, with what was asked."""
    host = _host(given)
    rate = given.rate or given.load * host.capacity * given.hosts
    scaling = None
    if given.scale_target:
        scaling = Scaling(given.scale_target / given.grain, least=1, most=given.most_hosts)
    fleet = Fleet(
        host,
        hosts=given.hosts,
        policy=given.policy,
        balancers=given.balancers,
        retries=given.retries,
        mtbf=given.mtbf_hours * 3600,
        detect=given.detect,
        cold_start=given.cold_start,
        scaling=scaling,
    )
    due = due_times(given.arrivals, rate / given.grain, given.seconds, given.seed)
    with tqdm(total=given.seconds, unit="s", disable=None, leave=False) as bar:

        def advance(now: float) -> None:
            bar.update(min(now, given.seconds) - bar.n)

        try:
            found = simulate(
                fleet,
                due,
                given.seconds,
                warm_up=given.warm_up,
                slo=given.slo_ms / 1000,
                grain=given.grain,
                seed=given.seed,
                on_progress=advance,
            )
        except ValueError as error:
            raise SystemExit(str(error)) from None
    return {"capacity": round(host.capacity * given.hosts, 1), "seed": given.seed} | found.as_json()


def main(arguments: list[str] | None = None) -> None:
    given = _arguments(arguments)
    found = run(given)
    if given.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name.replace('_', ' '):>18}  {_as_text(value)}")


def _as_text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {each:,}" for key, each in value.items())
    return f"{value:,}" if isinstance(value, int | float) else str(value)


if __name__ == "__main__":
    main()
