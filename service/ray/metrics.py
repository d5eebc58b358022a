"""Our metrics in Ray's as well, under the same names: with Ray's tags of deployment and replica.

Ray prefixes a name with `ray_`. Counters and gauges are copied every few seconds; a histogram has
to see each value.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from ray.serve import metrics as theirs

from service.metrics import SECONDS, SIZES, Metrics

PUSH_SECONDS = 2.0
# What each tells: an image that a replica computed is not counted again where it was asked for.
INGRESS = ("requests", "refusals", "in_flight")
REPLICA = (
    "phase", "batch_size", "images", "engine_errors", "out_of_memory", "queue_depth", "queue_limit",
    "model_ready", "model_info", "batches", "batch_seconds", "last_batch",
)  # fmt: skip
BOUNDARIES: dict[str, Sequence[float]] = {"phase": SECONDS, "batch_size": SIZES}


class RayMetrics(Metrics):
    """Those of `told`, which are attributes of `Metrics`, go to Ray too."""

    def __init__(self, told: Sequence[str]) -> None:
        super().__init__()
        self._copies = []
        for name in told:
            ours = getattr(self, name)
            if name in BOUNDARIES:
                setattr(self, name, Twins(ours, BOUNDARIES[name]))
            else:
                self._copies.append(Copy(ours))

    def push(self) -> None:
        """Brings Ray's counters and gauges up to date."""
        for copy in self._copies:
            copy.push()

    async def keep_pushing(self) -> None:
        while True:
            self.push()
            await asyncio.sleep(PUSH_SECONDS)


class Twins:
    """A histogram of ours and its copy, in place of ours."""

    def __init__(self, ours: Histogram, boundaries: Sequence[float]) -> None:
        (family,) = ours.collect()
        self._ours = ours
        self._names = tuple(ours._labelnames)
        self._theirs = theirs.Histogram(
            family.name, family.documentation, list(boundaries), self._names
        )

    def labels(self, *values: str) -> Twin:
        tags = dict(zip(self._names, values, strict=True))
        return Twin(self._ours.labels(*values), self._theirs, tags)


class Twin:
    def __init__(self, ours: Histogram, copy: Any, tags: dict[str, str]) -> None:
        self._ours, self._copy, self._tags = ours, copy, tags

    def observe(self, value: float, exemplar: dict[str, str] | None = None) -> None:
        self._ours.observe(value, exemplar)
        self._copy.observe(value, self._tags)


class Copy:
    """A counter or gauge of Ray's that follows one of ours."""

    def __init__(self, ours: Counter | Gauge) -> None:
        (family,) = ours.collect()
        self._ours = ours
        self._counts = isinstance(ours, Counter)
        kind = theirs.Counter if self._counts else theirs.Gauge
        self._theirs = kind(family.name, family.documentation, tuple(ours._labelnames))
        self._told: dict[tuple[tuple[str, str], ...], float] = {}

    def push(self) -> None:
        (family,) = self._ours.collect()
        found = {
            tuple(sample.labels.items()): sample.value
            for sample in family.samples
            if not sample.name.endswith("_created")
        }
        for labels, value in found.items():
            more = value - self._told.get(labels, 0.0)
            if not self._counts:
                self._theirs.set(value, dict(labels))
            elif more:
                self._theirs.inc(more, dict(labels))
        if not self._counts:
            # Ray cannot end a series.
            for labels in self._told.keys() - found.keys():
                self._theirs.set(0, dict(labels))
        self._told = found
