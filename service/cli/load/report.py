"""The statistics of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from service.cli.load.generator import (
    BROKEN,
    NO_CONNECTION,
    NOT_NOTICED,
    TIMED_OUT,
    Samples,
)
from service.cli.load.histogram import Histogram

OK = 200


@dataclass(frozen=True, slots=True)
class Run:
    """A load; times are in seconds, except for those in `_ms`.

    `rate` is requests per second in an open loop, None in a closed one; `arrivals` is "poisson" or
    "fixed". Requests due in the first `warm_up` seconds are sent but not counted; a request times
    out `timeout` seconds after it was due; one that found no free connection for `patience_ms` is
    dropped unsent. A share `new_connections` of the requests opens a connection of its own. The
    generator looks for what is due and for responses every `grain_ms` at most, which saves CPU at
    thousands of requests per second, and adds up to twice as much to each latency.
    """

    connections: int
    seconds: float
    rate: float | None = None
    arrivals: str = "poisson"
    seed: int = 0
    warm_up: float = 1.0
    timeout: float = 10.0
    slo_ms: float | None = None
    patience_ms: float | None = None
    new_connections: float = 0.0
    grain_ms: float = 0.0

    @property
    def mode(self) -> str:
        return "closed" if self.rate is None else "open"

    @property
    def load(self) -> str:
        """A label for a table or a legend."""
        if self.rate is None:
            return f"{self.connections} connection{'s' if self.connections > 1 else ''}"
        return f"{self.rate:g}/s {self.arrivals}"


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of the requests that were due in the `seconds` that count.

    `images_per_second` is the rate of responses with status 200 that arrived in that time,
    `goodput` of those within the run's `slo_ms`; `late` counts the others. `answers` counts
    statuses; 0 stands for requests without a response, of which `timeouts` timed out.
    Dropped unsent and in no other figure: `no_connection` found none free, and for
    `generator_late` the generator had no CPU time. `sent` counts all others, those of the warm-up
    included.
    `latency_ms` has the quantiles of the 200s, `refused_ms` those of each other status: in an open
    loop since the request was due, in a closed loop since it was sent.

    `phases_ms` has the median and p99 of each phase in Server-Timing; `rest` is what the server's
    total does not cover: the network, HTTP, waiting for a connection. `generator_cpu` is the share
    of one CPU that the generator used; near 1, the generator was the bottleneck. `generator_us` is
    its CPU time per request that was sent, in microseconds.
    """

    run: Run
    images_per_second: float
    goodput: float | None
    late: int | None
    latency_ms: dict[str, float]
    answers: dict[int, int]
    timeouts: int
    no_connection: int
    generator_late: int
    sent: int
    refused_ms: dict[int, dict[str, float]]
    phases_ms: dict[str, dict[str, float]]
    generator_cpu: float
    generator_us: float
    histogram: Histogram

    def as_json(self) -> dict[str, Any]:
        """The report for `json.dumps`, without what the run does not have."""
        document = {"mode": self.run.mode, **asdict(self.run)}
        if self.run.rate is None:
            for name in ("rate", "arrivals", "seed", "patience_ms"):
                del document[name]
        document |= {
            "images_per_second": self.images_per_second,
            "goodput": self.goodput,
            "late": self.late,
            "latency_ms": self.latency_ms,
            "answers": {str(status): count for status, count in self.answers.items()},
            "timeouts": self.timeouts,
            "no_connection": self.no_connection,
            "generator_late": self.generator_late,
            "sent": self.sent,
            "refused_ms": {str(status): ms for status, ms in self.refused_ms.items()} or None,
            "phases_ms": self.phases_ms or None,
            "generator_cpu": self.generator_cpu,
            "generator_us": self.generator_us,
            "histogram": self.histogram.as_json(),
        }
        return {name: value for name, value in document.items() if value is not None}


def summarised(run: Run, samples: Samples, begin: float, elapsed: float) -> Report:
    """The report of a run that counts from `begin`, a time of `time.perf_counter`.

    `elapsed`: seconds from the first request to the last response.
    """
    end = begin + run.seconds
    counted = (samples.intended >= begin) & (samples.intended < end)
    answered = counted & (samples.status > BROKEN)
    latency = samples.done - samples.intended
    good = answered & (samples.status == OK)
    histogram = Histogram.of(latency[good])
    in_time = (samples.status == OK) & (samples.done >= begin) & (samples.done < end)
    sent = samples.status > NO_CONNECTION
    statuses, counts = np.unique(
        np.maximum(samples.status[counted & sent], BROKEN), return_counts=True
    )
    answers = dict(zip(statuses.tolist(), counts.tolist(), strict=True))
    goodput = late = None
    if run.slo_ms is not None:
        within = int((good & (latency <= run.slo_ms / 1000)).sum())
        goodput, late = round(within / run.seconds, 1), int(good.sum()) - within
    return Report(
        run=run,
        images_per_second=round(int(in_time.sum()) / run.seconds, 1),
        goodput=goodput,
        late=late,
        latency_ms=histogram.summary_ms(),
        answers=answers,
        timeouts=int((counted & (samples.status == TIMED_OUT)).sum()),
        no_connection=int((counted & (samples.status == NO_CONNECTION)).sum()),
        generator_late=int((counted & (samples.status == NOT_NOTICED)).sum()),
        sent=int(sent.sum()),
        refused_ms={
            status: Histogram.of(latency[counted & (samples.status == status)]).summary_ms()
            for status in answers
            if status not in (BROKEN, OK)
        },
        phases_ms=_phases(
            [samples.timing[index] for index in np.flatnonzero(good)],
            (latency[good] * 1000).tolist(),
        ),
        generator_cpu=round(samples.cpu / elapsed, 3),
        generator_us=round(1e6 * samples.cpu / max(1, int(sent.sum())), 1),
        histogram=histogram,
    )


def _phases(timings: Sequence[bytes], latencies: Sequence[float]) -> dict[str, dict[str, float]]:
    """The quantiles of each phase, from Server-Timing values and latencies in milliseconds."""
    phases: dict[str, list[float]] = {}
    for timing, latency in zip(timings, latencies, strict=True):
        if timing:
            for name, milliseconds in durations(timing).items():
                phases.setdefault(name, []).append(milliseconds)
                if name == "total":
                    phases.setdefault("rest", []).append(max(0.0, latency - milliseconds))
    return {
        name: {
            "p50": round(float(np.quantile(values, 0.5)), 3),
            "p99": round(float(np.quantile(values, 0.99)), 3),
        }
        for name, values in phases.items()
    }


def durations(timing: bytes) -> dict[str, float]:
    """Milliseconds by phase from `decode;dur=0.2, total;dur=1.5`; others are left out."""
    phases = {}
    for metric in timing.decode("latin-1").split(","):
        name, *parameters = (part.strip() for part in metric.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "dur":
                try:
                    phases[name] = float(value.strip().strip('"'))
                except ValueError:
                    continue  # A malformed header must not end the run.
    return phases
