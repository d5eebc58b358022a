"""The two kinds of load."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from service.cli.load.generator import Generator
from service.cli.load.report import Report, Run, summarised
from service.cli.load.target import Target
from service.errors import ConfigError

Arrivals = Literal["poisson", "fixed"]
ARRIVALS: tuple[str, ...] = get_args(Arrivals)
OTHER_FILES = 64  # that a process has open besides its connections


def closed_loop(
    target: Target,
    *,
    connections: int,
    seconds: float,
    warm_up: float = 1.0,
    timeout: float = 10.0,
    slo_ms: float | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Report:
    """Each of `connections` sends its next request when it has its answer: saturation.

    Latencies leave out what callers would have waited who do not hold back while the server is
    slow; `open_loop` measures that. Times in seconds; `on_progress` is told those since the start.

    Raises:
        ConfigError: the process may not open so many connections.
    """
    run = Run(connections, seconds, warm_up=warm_up, timeout=timeout, slo_ms=slo_ms)
    return _measured(target, run, np.zeros(connections), on_progress)


def open_loop(
    target: Target,
    *,
    rate: float,
    seconds: float,
    connections: int = 256,
    arrivals: Arrivals = "poisson",
    seed: int = 0,
    warm_up: float = 1.0,
    timeout: float = 10.0,
    slo_ms: float | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Report:
    """`rate` requests a second, whether or not those before them are answered.

    A request's latency counts from when it was due, and so has its wait for one of at most
    `connections`. Else as `closed_loop`.

    Raises:
        ConfigError: the process may not open so many connections.
    """
    run = Run(connections, seconds, rate, arrivals, seed, warm_up, timeout, slo_ms)
    due = arrival_times(rate, warm_up + seconds, arrivals, seed)
    return _measured(target, run, due, on_progress)


def arrival_times(
    rate: float, seconds: float, arrivals: Arrivals, seed: int
) -> NDArray[np.float64]:
    """Rising times [N] from 0 to `seconds`: at even intervals, or independent of each other."""
    if arrivals == "fixed":
        return np.arange(0.0, seconds, 1 / rate)
    # Given their number, the times of a Poisson process are uniform and independent.
    random = np.random.default_rng(seed)
    return np.sort(random.uniform(0.0, seconds, random.poisson(rate * seconds)))


def _measured(
    target: Target,
    run: Run,
    due: NDArray[np.float64],
    on_progress: Callable[[float], None] | None,
) -> Report:
    _allow_files(run.connections + OTHER_FILES)
    with _no_collections():
        start = time.perf_counter()
        begin = start + run.warm_up
        samples = Generator(
            target,
            (start + due).tolist(),
            connections=run.connections,
            timeout=run.timeout,
            again_until=begin + run.seconds if run.mode == "closed" else 0.0,
            on_tick=on_progress and (lambda: on_progress(time.perf_counter() - start)),
        ).run()
        elapsed = time.perf_counter() - start
    return summarised(run, samples, begin, elapsed)


@contextmanager
def _no_collections() -> Iterator[None]:
    """No garbage is collected: a pause of ours would look like one of the server's."""
    collected = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


def _allow_files(count: int) -> None:
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < count:
        if most != resource.RLIM_INFINITY and most < count:
            raise ConfigError(f"connections: at most {most - OTHER_FILES} here; see ulimit -n")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, most))
