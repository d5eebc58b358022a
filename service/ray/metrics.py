"""Mirrors our metrics to Ray's, which add tags for deployment and replica.

Ray prefixes names with `ray_`. Counters and gauges are copied every few seconds; histograms must
observe each value.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from ray.serve import metrics as ray_metrics

from service.metric_families import CONFIDENCES, SIZES
from service.metrics import Metrics, Objectives

PUSH_SECONDS = 2.0
# The metrics of each: the ingress does not count images that a replica counts.
INGRESS = ("build_info", "requests", "refusals", "in_flight")
REPLICA = (
    "phase", "batch_size", "images", "engine_errors", "out_of_memory", "queue_depth", "queue_limit",
    "model_ready", "model_info", "batches", "batch_seconds", "last_batch", "device_images",
    "gpu_graphs", "gpu_memory_used", "gpu_memory_total", "gpu_memory_reserved", "gpu_utilisation",
    "gpu_temperature", "gpu_power", "slow_images", "slo_latency", "slo_latency_ratio",
    "slo_availability_ratio", "build_info", "load_seconds", "predictions", "confidence",
)  # fmt: skip


class RayMetrics(Metrics):
    """`Metrics` that mirrors its attributes `names` to Ray."""

    def __init__(self, names: Sequence[str], objectives: Objectives) -> None:
        super().__init__(objectives)
        boundaries = {
            "phase": objectives.bounds,
            "batch_size": SIZES,
            "confidence": CONFIDENCES,
        }
        self._mirrors = []
        for name in names:
            metric = getattr(self, name)
            if name in boundaries:
                setattr(self, name, MirroredHistogram(metric, boundaries[name]))
            else:
                self._mirrors.append(MirroredMetric(metric))

    def push(self) -> None:
        """Updates Ray's counters and gauges."""
        for mirror in self._mirrors:
            mirror.push()

    async def keep_pushing(self) -> None:
        while True:
            self.push()
            await asyncio.sleep(PUSH_SECONDS)


class MirroredHistogram:
    """A stand-in for a histogram that also observes values in Ray's."""

    def __init__(self, source: Histogram, boundaries: Sequence[float]) -> None:
        (family,) = source.collect()
        self._source = source
        self._names = tuple(source._labelnames)
        self._mirror = ray_metrics.Histogram(
            family.name, family.documentation, list(boundaries), self._names
        )

    def labels(self, *values: str) -> MirroredChild:
        tags = dict(zip(self._names, values, strict=True))
        return MirroredChild(self._source.labels(*values), self._mirror, tags)


class MirroredChild:
    """The series of a `MirroredHistogram` with given labels."""

    def __init__(self, source: Histogram, mirror: Any, tags: dict[str, str]) -> None:
        self._source, self._mirror, self._tags = source, mirror, tags

    def observe(self, value: float, exemplar: dict[str, str] | None = None) -> None:
        self._source.observe(value, exemplar)
        self._mirror.observe(value, self._tags)


class MirroredMetric:
    """Copies a counter or gauge to Ray's."""

    def __init__(self, source: Counter | Gauge) -> None:
        (family,) = source.collect()
        self._source = source
        self._is_counter = isinstance(source, Counter)
        kind = ray_metrics.Counter if self._is_counter else ray_metrics.Gauge
        self._mirror = kind(family.name, family.documentation, tuple(source._labelnames))
        self._pushed: dict[tuple[tuple[str, str], ...], float] = {}

    def push(self) -> None:
        (family,) = self._source.collect()
        values = {
            tuple(sample.labels.items()): sample.value
            for sample in family.samples
            if not sample.name.endswith("_created")
        }
        for labels, value in values.items():
            increase = value - self._pushed.get(labels, 0.0)
            if not self._is_counter:
                self._mirror.set(value, dict(labels))
            elif increase:
                self._mirror.inc(increase, dict(labels))
        if not self._is_counter:
            # Ray cannot remove a series.
            for labels in self._pushed.keys() - values.keys():
                self._mirror.set(0, dict(labels))
        self._pushed = values
