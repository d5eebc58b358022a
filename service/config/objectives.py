"""What the metrics judge latency by, from the settings: the same in every process of a service."""

from __future__ import annotations

import math

from service.config.settings import Settings
from service.metric_families import SECONDS
from service.metrics import Objectives

# Beyond the usual bounds, up to the longest deadline.
LONG_SECONDS = (25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0)


def objectives_of(settings: Settings) -> Objectives:
    """The goals, and the bounds of the latency histogram: the chosen or the usual ones, the goal,
    and up to `request_timeout_ms`, so that each image in time falls below one of them."""
    goal, deadline = seconds(settings.slo_latency_ms), seconds(settings.request_timeout_ms)
    bounds = {*map(seconds, settings.latency_buckets_ms)} or {*SECONDS}
    largest = max(bounds)
    bounds |= {bound for bound in LONG_SECONDS if largest < bound < deadline}
    bounds |= {bound for bound in (goal, max(largest, deadline)) if math.isfinite(bound)}
    return Objectives(
        goal, settings.slo_latency_ratio, settings.slo_availability_ratio, tuple(sorted(bounds))
    )


def seconds(milliseconds: float) -> float:
    """As a person would write them: 0.3 ms are 0.0003 s."""
    return round(milliseconds / 1000, 9)
