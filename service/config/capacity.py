"""How the CPUs are shared out among a request's parts, from what each part costs.

A request costs CPU time in three places: its HTTP, its image's decoding, and the engine. Together
they cannot be faster than the CPUs allow, and none of them faster than its own threads allow. The
figures are measured at the start (`service.engines.tuning`, `service.cli.trial`); these functions
are arithmetic, and its test holds them against machines that were measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# An engine gets another thread only if it can use a tenth of it: a thread that shares its CPU with
# the rest of the requests makes the others of its operator wait.
SPARE = 0.1
# One event loop answers at most this share of a second's requests before they wait for it.
BUSY_LOOP = 0.8
# Handing an image to an engine in another process costs both processes this part of what its HTTP
# costs: two memory copies less than a request on the network, and no parsing.
EXCHANGE = 0.6
MOST_FRONT_ENDS = 64
# Decoding comes in bursts, as the requests of a finished batch are answered and sent anew.
BURST = 2
# What the files of plans in `cache_dir` begin with; see `service.config.plan`.
PLAN = "plan"
# Where HTTP has not been measured, in seconds.
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
    """How many threads an engine computes with, at least one.

    `cpu_time`: seconds of CPU time that the process has in a second, as `service.runtime` says.
    When all CPUs are busy, the engine's part of a request is its part of the CPUs.
    """
    share = cpu_time * costs.engine / costs.total
    return max(1, min(math.ceil(share - SPARE), math.ceil(cpu_time)))


def rate(costs: Costs, cpu_time: float, threads: int) -> float:
    """Images a second that one process can serve, with so many threads for its engine."""
    return min(
        threads / costs.engine,  # the engine's threads
        1 / costs.request,  # the event loop, which is one thread
        cpu_time / costs.total,  # all CPUs
    )


def front_ends(costs: Costs, cpu_time: float) -> int:
    """How many processes accept, decode and answer; 1: the engine's own process does, too.

    Several pay where one event loop would hold the CPUs up, and more than what it costs to hand
    every image to another process.
    """
    alone = rate(costs, cpu_time, engine_threads(costs, cpu_time))
    exchange = EXCHANGE * costs.request
    # Half of it in the engine's process, whose event loop is one thread as well.
    together = min(cpu_time / (costs.total + exchange), 2 / exchange)
    if together <= alone:
        return 1
    busy = together * (costs.request + exchange / 2)  # in seconds of event loops a second
    return max(2, min(math.ceil(busy / BUSY_LOOP), MOST_FRONT_ENDS, math.ceil(cpu_time)))


def decode_threads(costs: Costs, cpu_time: float, processes: int) -> int:
    """How many threads of each of so many front ends decode."""
    busy = costs.decode * cpu_time / costs.total / processes
    return max(1, min(math.ceil(BURST * busy) + 1, math.ceil(cpu_time / processes)))
