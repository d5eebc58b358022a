"""The service at twice and ten times of what it can: bounded, answered, counted, in time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.common import images, metrics
from benchmarks.serving import overload


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [1, 2])
def test_overload_is_refused_and_what_is_accepted_is_in_time(workers: int) -> None:
    arguments: Sequence[str] = ("--workers", str(workers))
    plan = overload.Plan("builtin:resnet20-cifar10", images.small(32), 4.0, arguments)
    figures = overload.measure(plan)
    normal, *over = figures["loads"]
    assert [load["factor"] for load in over] == [2.0, 10.0]
    for load in over:
        assert load["unanswered"] == 0
        assert set(load["answers"]) <= {"200", "429", "504"}
        assert load["answers"]["200"] > 0
        assert load["answers"]["429"] > load["answers"].get("504", 0)
        # Each side has counted the same; who left has seen no status.
        reasons = dict(load["refused_by_reason"])
        assert reasons.pop("caller_left", 0) == 0
        assert sum(reasons.values()) == load["refused_as_callers_saw"]
        refused = reasons.get("queue_full", 0) + reasons.get("deadline_too_short", 0)
        assert refused >= load["answers"]["429"]
        assert load["beside"]["refused_without_retry_after"] == 0
        # By the service's own clock: that of callers has their waiting for a connection, too.
        # Of most of them, as tests beside this one take the CPUs from some.
        assert load["phases_ms"]["total"]["p50"] <= figures["patience_ms"] * 1.5 + 50
        assert load["deepest_queue"] <= 256
        assert load["peak_memory_mib"] < normal["peak_memory_mib"] + 200
    assert "10x" in overload.table(figures)


def test_refusals_are_summed_over_models() -> None:
    text = """# HELP x
resnet_serve_refusals_total{model="a",reason="queue_full"} 2.0
resnet_serve_refusals_total{model="b",reason="queue_full"} 3.0
resnet_serve_queue_depth{model="a"} 4.0
"""
    assert metrics.sums(text) == {"refusals:queue_full": 5, "resnet_serve_queue_depth": 4}
