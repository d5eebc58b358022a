"""The simulations that docs/scale.md speaks of.

python -m benchmarks.scale.tables --output benchmarks/results/scale.json --plot docs/scale.png

All of the host `t4` of `simulate`, whose batch times are published ones: what a balancer is worth,
what a failure costs, how late autoscaling is, and a thousand hosts for a minute.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.common.progress import say
from benchmarks.scale.simulate import HOSTS, due_times
from benchmarks.scale.simulation import Fleet, Outcome, Scaling, arrivals, simulate
from benchmarks.scale.simulation.balancers import POLICIES
from service.cli.load.document import as_text
from service.cli.load.environment import machine, versions

HOST = HOSTS["t4"]
LOADS = (0.5, 0.7, 0.8, 0.9, 0.95)
# All alike; every tenth half as fast; and ten balancers that do not know of each other.
CROWDS: Mapping[str, Fleet] = {
    "alike": Fleet(HOST, 50),
    "one in ten slow": Fleet(HOST, 50, slow_every=10),
    "ten balancers": Fleet(HOST, 50, slow_every=10, balancers=10),
}
COLD_STARTS = (30.0, 120.0, 300.0)
# What each host shall have of it: unanswered images, or 70 % of the images a second that it can.
TARGETS: Mapping[Literal["unanswered", "rate"], float] = {
    "unanswered": 30.0,
    "rate": 0.7 * HOST.capacity,
}
SHORT, WARM_UP = 1.2, 0.3
# When the load doubles, and how long is looked at.
STEP_AT, STEP_SECONDS = 60.0, 450.0
# Images that come together where there are too many to follow each.
GRAIN, MINUTE_GRAIN = 8, 32


def _steady(fleet: Fleet, load: float, seconds: float, *, grain: int = 1) -> Outcome:
    """`load` is a share of what the hosts can that are not slow, and half of the others."""
    slow = fleet.hosts // fleet.slow_every if fleet.slow_every else 0
    rate = load * fleet.host.capacity * (fleet.hosts - slow / 2)
    due = due_times("poisson", rate / grain, seconds, seed=1)
    warm_up = seconds * WARM_UP / SHORT
    return simulate(fleet, due, seconds, warm_up=warm_up, slo=0.1, grain=grain, seed=1)


def policies(seconds: float = SHORT) -> list[dict[str, Any]]:
    """Latency by balancer and load."""
    found = []
    for crowd, fleet in CROWDS.items():
        for policy in POLICIES:
            say(f"{policy}, {crowd}")
            for load in LOADS:
                outcome = _steady(replace(fleet, policy=policy), load, seconds).as_json()
                found.append({"crowd": crowd, "policy": policy, "load": load, **outcome})
    return found


def failures(hosts: int = 20, seconds: float = 8.0) -> list[dict[str, Any]]:
    """What callers see of hosts that fail, by how soon balancers notice and who tries again."""
    found = []
    for policy in POLICIES:
        for detect, retries in ((2.0, 0), (2.0, 2), (0.1, 0), (0.1, 2)):
            say(f"failures: {policy}, noticed after {detect} s, {retries} more tries")
            fleet = Fleet(
                HOST, hosts, policy, retries=retries, mtbf=40.0, detect=detect, cold_start=4.0
            )
            outcome = _steady(fleet, 0.6, seconds, grain=4).as_json()
            found.append({"policy": policy, "detect": detect, "retries": retries, **outcome})
    return found


def scaling(seconds: float = STEP_SECONDS) -> list[dict[str, Any]]:
    """A load that doubles at once, by the cold start and by what hosts are added for."""
    rates = np.where(np.arange(seconds) < STEP_AT, 1.0, 2.0) * 4 * HOST.capacity
    due = arrivals.times(rates / GRAIN, seconds, np.random.default_rng(1))
    found = []
    for cold_start in COLD_STARTS:
        for signal, target in TARGETS.items():
            say(f"autoscaling: cold start {cold_start:g} s, by {signal}")
            wanted = Scaling(target / GRAIN, least=5, most=20, signal=signal)
            fleet = Fleet(replace(HOST, timeout=1.0), 5, scaling=wanted, cold_start=cold_start)
            outcome = simulate(fleet, due, seconds, warm_up=STEP_AT, grain=GRAIN, seed=1)
            bad = outcome.due[(outcome.status != 200) & (outcome.due >= STEP_AT)]
            found.append(
                {
                    "cold_start": cold_start,
                    "signal": signal,
                    "target": target,
                    "hosts_before": max(n for t, n in outcome.hosts if t < STEP_AT),
                    "refused_until_s": round(float(bad.max()) - STEP_AT, 1) if len(bad) else 0.0,
                    "hosts_over_time": outcome.hosts,
                    **outcome.as_json(),
                }
            )
    return found


def sizes() -> list[dict[str, Any]]:
    """One host to a thousand at 80 %, image by image."""
    found = []
    for hosts in (1, 10, 100, 1000):
        say(f"{hosts} hosts")
        seconds = min(20.0, max(1.0, 200 / hosts))
        outcome = _steady(Fleet(HOST, hosts), 0.8, seconds).as_json()
        found.append({"hosts": hosts, "seconds": seconds, **outcome})
    return found


def minute() -> dict[str, Any]:
    """A thousand hosts for a minute, in which some fail."""
    say("1000 hosts for a minute")
    began = time.process_time()
    fleet = Fleet(HOST, 1000, retries=2, mtbf=12_000.0, detect=2.0)
    outcome = _steady(fleet, 0.8, 60.0, grain=MINUTE_GRAIN)
    return {
        "grain": MINUTE_GRAIN,
        "cpu_s": round(time.process_time() - began, 1),
        **outcome.as_json(),
    }


def draw(figures: dict[str, Any], path: Path) -> None:
    """Latency by load and balancer; hosts and refusals after a load has doubled."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from models.plotting import STYLE
    from service.cli.load.plot import COLOURS

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.6), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        for axes, crowd in ((left, "alike"), (middle, "one in ten slow")):
            for colour, policy in zip(COLOURS, POLICIES, strict=False):
                rows = [
                    row
                    for row in figures["policies"]
                    if row["crowd"] == crowd and row["policy"] == policy
                ]
                loads = [row["load"] * 100 for row in rows]
                p99 = [row["latency_ms"]["p99"] for row in rows]
                label = policy.replace("_", " ")
                axes.plot(loads, p99, color=colour, label=label, marker="o", markersize=3)
            axes.set_title(f"50 hosts, {crowd}")
            axes.set_xlabel("load, % of capacity")
            axes.set_yscale("log")
            axes.set_ylim(30, 3000)
        left.set_ylabel("p99 latency, ms")
        left.legend(frameon=False)
        for colour, cold_start in zip(COLOURS, COLD_STARTS, strict=False):
            for signal, line in (("rate", "-"), ("unanswered", ":")):
                times, hosts = _steps(figures["scaling"], cold_start, signal)
                label = f"by {signal}, {cold_start:g} s"
                right.step(times, hosts, line, color=colour, where="post", label=label)
        right.axvline(STEP_AT, ymax=0.75, color="#777777", linestyle="--", linewidth=1)
        right.set_xlim(0, STEP_SECONDS)
        right.set_title("The load doubles at 60 s")
        right.set_xlabel("time, s")
        right.set_ylabel("ready hosts")
        right.set_ylim(0, 29)
        right.legend(frameon=False, ncols=2, loc="upper left", fontsize=7)
        figure.savefig(path, dpi=110)


def _steps(
    rows: Sequence[dict[str, Any]], cold_start: float, signal: str
) -> tuple[list[float], list[int]]:
    """Times at which the number of ready hosts changed, and that number."""
    row = next(r for r in rows if r["cold_start"] == cold_start and r["signal"] == signal)
    times = [time for time, _ in row["hosts_over_time"]]
    hosts = [count for _, count in row["hosts_over_time"]]
    return [*times, STEP_SECONDS], [*hosts, hosts[-1]]


PARTS: Mapping[str, Callable[[], Any]] = {
    "sizes": sizes,
    "failures": failures,
    "scaling": scaling,
    "policies": policies,
    "minute": minute,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    parser.add_argument("--plot", type=Path, help="a .png or .svg")
    parser.add_argument("--only", nargs="*", choices=PARTS, help="the others stay as they are")
    given = parser.parse_args()
    figures: dict[str, Any] = {"machine": machine(), "versions": versions(), "host": asdict(HOST)}
    if given.only is not None:
        figures = json.loads(given.output.read_text("utf-8")) | figures
    for name, part in PARTS.items():
        if given.only is None or name in given.only:
            figures[name] = part()
    given.output.write_text(as_text(figures), "utf-8")
    if given.plot:
        draw(figures, given.plot)


if __name__ == "__main__":
    main()
