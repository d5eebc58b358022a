"""How to divide the CPUs among the parts of a request, given the cost of each part.

A request takes CPU time for HTTP, for decoding its image, and in the engine. Together they are
limited by the CPUs, and each of them by its own threads. The costs are measured at the start
(`service.engines.tuning`, `service.cli.trial`); these functions are plain arithmetic, which the
tests compare with measurements of real machines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# An engine gets another thread only if it can use a tenth of it: a thread that shares its CPU with
# other work makes the other threads of the same operator wait.
SPARE = 0.1
# Above this utilisation, requests start to wait for an event loop.
BUSY_LOOP = 0.8
# Passing an image to an engine in another process costs both processes this fraction of its HTTP:
# two fewer copies than a network request, and no parsing.
EXCHANGE = 0.6
MOST_FRONT_ENDS = 64
# Decoding is bursty: when a batch finishes, its clients send their next requests.
BURST = 2
# Prefix of plan files in `cache_dir`; see `service.config.plan`.
PLAN = "plan"
# Seconds of HTTP per request, if not measured.
USUAL_REQUEST = 300e-6


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of CPU time for one image: of the engine with all CPUs, of decoding, of HTTP."""

    engine: float
    decode: float
    request: float

    @property
    def total(self) -> float:
        return self.engine + self.decode + self.request


def engine_threads(costs: Costs, cpu_time: float) -> int:
    """The number of threads of an engine, at least one.

    `cpu_time`: the process's seconds of CPU time per second, as in `service.runtime`. When all CPUs
    are busy, the engine's share of a request's cost is its share of the CPUs.
    """
    share = cpu_time * costs.engine / costs.total
    return max(1, min(math.ceil(share - SPARE), math.ceil(cpu_time)))


def rate(costs: Costs, cpu_time: float, threads: int) -> float:
    """Images per second that one process can serve, if its engine has `threads` threads."""
    return min(
        threads / costs.engine,  # the engine's threads
        1 / costs.request,  # the event loop, which is one thread
        cpu_time / costs.total,  # all CPUs
    )


def front_ends(costs: Costs, cpu_time: float) -> int:
    """The number of processes that accept, decode and respond; 1: only the engine's own process.

    More pay off if a single event loop would be the bottleneck by more than it costs to pass every
    image to another process.
    """
    alone = rate(costs, cpu_time, engine_threads(costs, cpu_time))
    exchange = EXCHANGE * costs.request
    # Half of it in the engine's process, whose event loop also has a single thread.
    together = min(cpu_time / (costs.total + exchange), 2 / exchange)
    if together <= alone:
        return 1
    busy = together * (costs.request + exchange / 2)  # event loops fully used
    return max(2, min(math.ceil(busy / BUSY_LOOP), MOST_FRONT_ENDS, math.ceil(cpu_time)))


def decode_threads(costs: Costs, cpu_time: float, processes: int) -> int:
    """The number of decoding threads in each of `processes` front ends."""
    busy = costs.decode * cpu_time / costs.total / processes
    return max(1, min(math.ceil(BURST * busy) + 1, math.ceil(cpu_time / processes)))
