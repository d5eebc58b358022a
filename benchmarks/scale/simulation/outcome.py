"""What a simulation's times mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.scale.simulation.node import OK

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of N requests, each of `grain` images: when each was first due, float64 [N]; how long its
    caller waited for the last answer, float64 [N]; that answer's status, int16 [N]. Times in
    seconds.

    `begin` to `end`: what was due then counts. `inside_seconds` is the sum over time of how many
    requests were at hosts, `stays` what each try's stay there sums up to: the same, says Little.
    `hosts` holds how many were ready, each with the time since when.
    """

    due: NDArray[np.float64]
    latency: NDArray[np.float64]
    status: NDArray[np.int16]
    begin: float
    end: float
    grain: int
    slo: float
    batches: int
    computed: int
    deepest: int
    tries: int
    failures: int
    inside_seconds: float
    stays: float
    busy_seconds: float
    device_seconds: float
    usd: float
    hosts: list[tuple[float, int]]
    events: int

    def of_counted(self) -> NDArray[np.bool_]:
        return (self.due >= self.begin) & (self.due < self.end)

    def as_json(self) -> dict[str, Any]:
        """Rates in images a second, latencies of answers with status 200 in milliseconds."""
        counted, good = self.of_counted(), self.status == OK
        seconds = self.end - self.begin
        done = self.due + self.latency
        in_time = good & (done >= self.begin) & (done < self.end)
        waited = self.latency[counted & good]
        within = int((waited <= self.slo).sum())
        statuses, counts = np.unique(self.status[counted], return_counts=True)
        answered = int(good.sum()) * self.grain
        return {
            "offered": round(int(counted.sum()) * self.grain / seconds, 1),
            "images_per_second": round(int(in_time.sum()) * self.grain / seconds, 1),
            "goodput": round(within * self.grain / seconds, 1),
            "slo_ms": round(self.slo * 1000, 3) if math.isfinite(self.slo) else None,
            "latency_ms": {
                name: round(float(np.quantile(waited, share)) * 1000, 3)
                for name, share in QUANTILES.items()
            }
            if len(waited)
            else {},
            "answers": {
                str(status): count * self.grain
                for status, count in zip(statuses.tolist(), counts.tolist(), strict=True)
            },
            "tries": self.tries * self.grain,
            "batch_size": round(self.computed * self.grain / max(1, self.batches), 3),
            "utilisation": round(self.busy_seconds / self.device_seconds, 4),
            "deepest_queue": self.deepest * self.grain,
            "failures": self.failures,
            "hosts": {
                "least": min(n for _, n in self.hosts),
                "most": max(n for _, n in self.hosts),
            },
            "usd": round(self.usd, 4),
            "usd_per_million": round(self.usd / answered * 1e6, 4) if answered else None,
            "events": self.events,
        }
