"""What metrics and traces cost."""

from __future__ import annotations

import os
import time

import pytest

from benchmarks.serving import observability
from benchmarks.serving.observability import Turn


def test_services_are_compared_within_a_round() -> None:
    found = {
        "off": [Turn(100, 500), Turn(50, 1000), Turn(99, 510)],
        "1": [Turn(90, 600), Turn(45, 1090), Turn(90, 615)],
    }
    figures = observability.compared(found)
    assert figures["1"]["more_cpu_microseconds_than_off"] == {
        "median": 100,
        "lowest": 90,
        "highest": 105,
    }
    assert figures["off"]["more_cpu_microseconds_than_off"]["highest"] == 0
    alone = {"1": observability.median_and_range([200.0, 210.0, 400.0])}
    text = observability.table(figures, alone, {"request": 5.25})
    assert "| 1 | 210 (200 to 400) |" in text
    assert "| 1 | 90 | 615 | +100 (+90 to +105) |" in text
    assert "| off | 99 | 510 | - |" in text
    assert "| request | 5.25 |" in text


def test_cpu_time_is_that_of_the_process() -> None:
    before, own = observability.cpu_microseconds(os.getpid()), time.process_time()
    while time.process_time() < own + 0.1:
        pass
    assert observability.cpu_microseconds(os.getpid()) - before >= 70_000


@pytest.mark.slow
def test_tracing_all_costs_more_than_tracing_none() -> None:
    found = observability.of_tracing(1)
    assert found["1"]["median"] > found["0"]["median"]


@pytest.mark.slow
def test_each_share_has_its_turns() -> None:
    found = observability.measure("builtin:resnet20-cifar10", 1, 0.5)
    assert found.keys() == observability.SHARES.keys()
    assert all(each.cpu_microseconds > 0 for turns in found.values() for each in turns)
    assert observability.of_metrics()["request"] > 0
