"""Running a load: closed loop or open loop."""

from __future__ import annotations

import gc
import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from service.cli.load.generator import Clients, Generator
from service.cli.load.report import Report, Run, summarised
from service.cli.load.target import Target
from service.errors import ConfigError
from service.runtime import allow_files

OTHER_FILES = 64  # that a process has open besides its connections


def run_load(
    target: Target, run: Run, on_progress: Callable[[float], object] | None = None
) -> Report:
    """Sends the load that `run` describes; `on_progress` receives the seconds since the start.

    In a closed loop, each connection sends its next request when the response to the previous one
    arrives: saturation. Its latencies hide the wait of clients that do not slow down when the
    server does. An open loop sends at a fixed rate whether or not earlier responses have arrived,
    and latency counts from when a request was due, including any wait for a connection. A request
    that waits longer than `run.patience_ms` for one is dropped, never sent late.

    Raises:
        ConfigError: the process may not open that many connections.
    """
    # Those that stay open, and as many that are closed after a request.
    _allow_connections(run.connections * (2 if run.new_connections else 1))
    if run.rate is None:
        due = np.zeros(run.connections)
    else:
        due = arrival_times(run.rate, run.warm_up + run.seconds, run.arrivals, run.seed)
    with _no_collections():
        start = time.perf_counter()
        begin = start + run.warm_up
        samples = Generator(
            target,
            (start + due).tolist(),
            Clients(
                run.connections,
                run.timeout,
                math.inf if run.patience_ms is None else run.patience_ms / 1000,
                run.new_connections,
                run.grain_ms / 1000,
            ),
            again_until=begin + run.seconds if run.rate is None else 0.0,
            on_tick=on_progress and (lambda: on_progress(time.perf_counter() - start)),
        ).run()
        elapsed = time.perf_counter() - start
    return summarised(run, samples, begin, elapsed)


def arrival_times(rate: float, seconds: float, arrivals: str, seed: int) -> NDArray[np.float64]:
    """Times [N] from 0 to `seconds` in ascending order: evenly spaced, or a Poisson process."""
    if arrivals == "fixed":
        return np.arange(0.0, seconds, 1 / rate)
    # Given their number, the times of a Poisson process are uniform and independent.
    random = np.random.default_rng(seed)
    return np.sort(random.uniform(0.0, seconds, random.poisson(rate * seconds)))


@contextmanager
def _no_collections() -> Iterator[None]:
    """Disables garbage collection: a pause here would look like one of the server's."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _allow_connections(count: int) -> None:
    allow_files(count + OTHER_FILES)
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < count + OTHER_FILES:
        raise ConfigError(f"connections: at most {allowed - OTHER_FILES} here; see ulimit -n")
