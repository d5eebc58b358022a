"""The service at twice and ten times of what it can: bounded, answered, counted, in time."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.common import images
from benchmarks.serving import overload, refusal
from benchmarks.serving.overload_table import table


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [1, 2])
def test_overload_is_refused_and_what_is_accepted_is_in_time(workers: int) -> None:
    plan = overload.Plan(
        "builtin:resnet20-cifar10",
        images.small(32),
        3.0,
        workers,
        factors=(2.0, 10.0),
        new_connections=0.1 * (workers - 1),
    )
    figures = overload.measure(plan)
    patience_ms = figures["patience_ms"]
    assert figures["capacity"] == max(
        each["images_per_second"]
        for each in figures["closed"]
        if each["latency_ms"]["p50"] <= patience_ms
    )
    assert [each["connections"] for each in figures["many_connections"]] == [64, 512, 1500]
    assert figures["refusal"]["share"] > 0.95
    assert figures["refusal"]["service_user_us"] > 0
    assert figures["seconds_to_end"]["https"] < 20
    normal, *over = figures["loads"]
    assert [load["factor"] for load in over] == [2.0, 10.0]
    for load in over:
        assert load["unanswered"] == 0
        assert set(load["answers"]) <= {"200", "429", "504"}
        assert load["answers"]["200"] > 0
        refused = load["answers"].get("429", 0)
        assert refused >= load["answers"].get("504", 0)
        # Each side has counted the same; who left has seen no status.
        reasons = dict(load["refused_by_reason"])
        assert reasons.pop("caller_left", 0) == 0
        assert sum(reasons.values()) == load["refused_as_clients_saw"]
        too_many = reasons.get("queue_full", 0) + reasons.get("deadline_too_short", 0)
        assert too_many >= refused
        assert load["polite_client"]["refused_without_retry_after"] == 0
        # By the service's own clock: that of clients has their waiting for a connection, too.
        # Of most of them, as tests beside this one take the CPUs from some.
        assert load["phases_ms"]["total"]["p50"] <= figures["patience_ms"] * 1.5 + 50
        assert load["late"] <= load["answers"]["200"]
        assert load["cpu_seconds"]["service_user"] > 0
        assert all(probe["count"] > 20 for probe in load["probes"].values())
        assert load["deepest_queue"] <= 256
        assert load["peak_memory_mib"] < normal["peak_memory_mib"] + 200
    # Twice of what was measured is no overload if the machine was busier then.
    assert over[-1]["answers"]["429"] > 0
    printed = table(figures).splitlines()
    rows = [line for line in printed if line.startswith("|")]
    assert len(rows) == 2 + 3 + 3
    assert len({line.count("|") for line in rows}) == 1
    assert any("over TLS" in line for line in printed)


def test_the_capacity_is_that_of_clients_who_have_the_patience() -> None:
    def closed(connections: int, rate: float, p50: float | None) -> dict[str, Any]:
        latency_ms = {} if p50 is None else {"p50": p50}
        return {
            "connections": connections,
            "images_per_second": rate,
            "latency_ms": latency_ms,
        }

    loops = [closed(8, 900, 5), closed(64, 1000, 60), closed(128, 1100, 120), closed(256, 0, None)]
    assert overload.fastest_within(loops, 63) == [(1000, 60), (900, 5)]
    assert overload.fastest_within(loops, None) == [(1100, 120), (1000, 60), (900, 5)]
    assert overload.fastest_within(loops, 1) == []


def test_a_cost_that_other_responses_share_is_not_told() -> None:
    figures = {"share": 0.5, "service_user_us": None}
    assert refusal.line(figures) == (
        "Only 50% of the responses were refusals: their cost is unknown."
    )
