"""The shares of the CPUs, held against machines that were measured, and worked out for larger ones.

Costs are CPU milliseconds: of the engine for an image with all CPUs, of decoding, of HTTP.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest

from service.config import capacity
from service.config.capacity import Costs


class Measured(NamedTuple):
    """What a machine did: the best number of engine threads, and whether one process was best."""

    cpu_time: float
    engine: float
    decode: float
    request: float
    threads: int
    processes: int

    @property
    def costs(self) -> Costs:
        return Costs(self.engine / 1000, self.decode / 1000, self.request / 1000)


MEASURED = {
    # 92 images/s with two engine threads, 58 with one.
    "EPYC (Zen 5), 2 cores, ResNet-50, bf16": Measured(2, 17.24, 1.5, 0.22, 2, 1),
    # 4,597 images/s with one, 4,194 with two, 3,539 with two front ends.
    "EPYC (Zen 5), 2 cores, ResNet-20, bf16": Measured(2, 0.192, 0.03, 0.22, 1, 1),
    # 69 images/s with two, 53 with one.
    "EPYC (Zen 5), a quota of 1.5 CPUs, ResNet-50, bf16": Measured(1.5, 14.2, 1.55, 0.247, 2, 1),
    # 2,719 images/s with one, 2,706 with two.
    "EPYC (Zen 5), a quota of 1.5 CPUs, ResNet-20, bf16": Measured(1.5, 0.178, 0.052, 0.243, 1, 1),
    # 118 images/s with two engine threads, 92 with one.
    "Xeon with AMX, 2 cores, ResNet-50, bf16": Measured(2, 10.2, 2.3, 0.23, 2, 1),
    # 2,467 images/s with one, 2,366 with two.
    "Xeon with AMX, 2 cores, ResNet-20, bf16": Measured(2, 0.13, 0.085, 0.233, 1, 1),
    # 15.2 images/s with two threads, which it took because they were 1.1 times as fast as one.
    "Xeon (Cascade Lake), 2 hyper-threads of a core, ResNet-50, fp32": Measured(
        2, 119, 5.5, 0.9, 2, 1
    ),
}
# What larger machines should be given; worked out, not measured. On 16 and 64 CPUs as fast as the
# EPYC's, each part of a request costs what it costs there.
PAPER = {
    "16 CPUs, ResNet-50": Measured(16, 17.24, 1.5, 0.22, 15, 1),
    "64 CPUs, ResNet-50": Measured(64, 17.24, 1.5, 0.22, 59, 1),
    # All images pass one event loop beside the engine, which more front ends could not feed faster.
    "16 CPUs, ResNet-20": Measured(16, 0.192, 0.03, 0.22, 7, 6),
    "64 CPUs, ResNet-20": Measured(64, 0.192, 0.03, 0.22, 28, 6),
    "4 CPUs, ResNet-20": Measured(4, 0.192, 0.03, 0.22, 2, 3),
    "1 CPU, ResNet-50": Measured(1, 17.24, 1.5, 0.22, 1, 1),
    "a quota of 1.5 CPUs, ResNet-50": Measured(1.5, 17.24, 1.5, 0.22, 2, 1),
    "a quota of 0.5 CPUs, ResNet-20": Measured(0.5, 0.192, 0.03, 0.22, 1, 1),
}


@pytest.mark.parametrize("name", [*MEASURED, *PAPER])
def test_each_machine_gets_what_serves_it_best(name: str) -> None:
    machine = (MEASURED | PAPER)[name]
    assert capacity.engine_threads(machine.costs, machine.cpu_time) == machine.threads
    assert capacity.front_ends(machine.costs, machine.cpu_time) == machine.processes


@pytest.mark.parametrize("name", [*MEASURED, *PAPER])
def test_no_part_of_a_request_holds_the_others_up(name: str) -> None:
    """The threads together are enough to use all CPUs, and hardly more."""
    machine = (MEASURED | PAPER)[name]
    costs, cpu_time, processes = machine.costs, machine.cpu_time, machine.processes
    rate = capacity.rate(costs, cpu_time, machine.threads)
    assert rate * costs.engine <= machine.threads
    decoders = capacity.decode_threads(costs, cpu_time, processes)
    assert 1 <= decoders <= max(1, math.ceil(cpu_time / processes))
    assert decoders * processes >= min(rate * costs.decode, cpu_time)


@pytest.mark.parametrize("cpu_time", [0.25, 0.5, 1, 1.5, 2, 3, 4, 8, 16, 64])
@pytest.mark.parametrize("engine", [1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
def test_an_engine_gets_its_share_and_the_rest_keeps_theirs(cpu_time: float, engine: float) -> None:
    costs = Costs(engine, 1e-3, 2e-4)
    threads = capacity.engine_threads(costs, cpu_time)
    share = cpu_time * costs.engine / costs.total
    assert 1 <= threads <= math.ceil(cpu_time)
    assert threads >= min(share - capacity.SPARE, math.ceil(cpu_time))
    assert threads < share + 1 - capacity.SPARE or threads == 1


def test_a_thread_more_must_be_of_use() -> None:
    """On two CPUs the engine takes both when it costs 1.1 / 0.9 of all the rest."""
    rest = 1e-3
    at_the_limit = rest * 1.1 / 0.9
    assert capacity.engine_threads(Costs(0.99 * at_the_limit, rest, 0), 2) == 1
    assert capacity.engine_threads(Costs(1.01 * at_the_limit, rest, 0), 2) == 2


def test_several_front_ends_are_for_event_loops_that_would_hold_the_cpus_up() -> None:
    fast = Costs(100e-6, 50e-6, 250e-6)
    assert capacity.front_ends(fast, 2) == 1, "the exchange would cost more than it brings"
    assert capacity.front_ends(fast, 8) > 2
    assert capacity.front_ends(Costs(10e-3, 2e-3, 250e-6), 8) == 1
