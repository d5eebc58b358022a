"""Throughput under Ray Serve with 1, 2, 3 replicas of an engine that only waits.

    python -m benchmarks.ray.scaling --output benchmarks/results/ray_scaling.json

Each image takes the engine a fixed time, in which it uses no CPU, so that a machine of few CPUs can
show how the way to the replicas scales. It says nothing of how fast a network is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from benchmarks.common.images import small
from benchmarks.ray.nodes import Nodes, nodes, until
from service.cli.load.environment import machine, versions

MODEL = "cifar"
SETTINGS: dict[str, Any] = {
    "models": [
        {"name": MODEL, "spec": "random:resnet20", "engine": "eager", "max_batch": 1},
    ]
}
# Waiting for each replica, so that none is idle between two images.
CALLERS_PER_REPLICA = 4
WARM_UP_SECONDS = 5
# The median of several: others may use the machine for a moment.
WINDOWS = 3


def measure(url: str, image: bytes, callers: int, seconds: float) -> dict[str, Any]:
    """Answers a second of so many callers, each of whom asks again when it is answered."""
    times: list[float] = []
    failures: list[int] = []
    over = threading.Event()

    def call() -> None:
        with httpx.Client(timeout=60) as client:
            while not over.is_set():
                began = time.perf_counter()
                status = client.post(f"{url}/v1/classify", content=image).status_code
                if status == 200:
                    times.append(time.perf_counter() - began)
                else:
                    failures.append(status)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    time.sleep(WARM_UP_SECONDS)
    before = len(times)
    rates = []
    for _ in range(WINDOWS):
        counted, began = len(times), time.perf_counter()
        time.sleep(seconds)
        rates.append((len(times) - counted) / (time.perf_counter() - began))
    over.set()
    for thread in threads:
        thread.join()
    return {
        "images_per_second": round(statistics.median(rates), 2),
        "windows": [round(rate, 2) for rate in rates],
        "median_ms": round(1000 * statistics.median(times[before:]), 1),
        "failures": len(failures),
    }


def with_replicas(cluster: Nodes, replicas: int, delay: float, seconds: float) -> dict[str, Any]:
    cluster.command("")
    cluster.deploy(SETTINGS, cifar={"num_replicas": replicas})
    until(lambda: cluster.replicas(MODEL) == replicas, cluster.told)
    cluster.command(f"slow {delay}")
    callers = CALLERS_PER_REPLICA * replicas
    return {"replicas": replicas, "callers": callers} | measure(
        cluster.url, small(32, 1)[0], callers, seconds
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--delay", type=float, default=0.2, help="seconds for an image")
    parser.add_argument("--seconds", type=float, default=10, help="of each of three measurements")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, nodes(3, 4, Path(folder)) as cluster:
        runs = [with_replicas(cluster, n, options.delay, options.seconds) for n in (1, 2, 3)]
    first = runs[0]["images_per_second"]
    for run in runs:
        run["of_linear"] = round(run["images_per_second"] / first / run["replicas"], 3)
        print(run)
    result = {
        "seconds_per_image": options.delay,
        "engine_limit_per_replica": 1 / options.delay,
        "nodes": 3,
        "machine": machine(),
        "versions": versions() | {"ray": version("ray")},
        "load_average": os.getloadavg()[0],
        "runs": runs,
    }
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
