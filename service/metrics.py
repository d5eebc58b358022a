"""Counting what happens, and the series of each model, in a registry of its own."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from platform import python_version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics_format

from service import errors, runtime
from service.metric_families import SECONDS, Families

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text"
OPENMETRICS_TYPE = f"{OPENMETRICS}; version=1.0.0; charset=utf-8"
# What the classes without series of their own count as.
OTHER = "other"
REASONS = (errors.ServiceError.reason, *(error.reason for error in errors.REFUSALS))
PHASES = ("accept", "decode", "queue", "inference", "total")
# After a model has gone, for Prometheus to scrape its last values.
GONE_SECONDS = 300.0


@dataclass(slots=True)
class GpuUse:
    """What a GPU has in use, each field for the gauge gpu_FIELD; NaN: not known.

    Memory in bytes, of which this process's allocator has `memory_reserved`; `utilisation`: share
    of the time in which it computed, 0 to 1; `temperature` in degrees Celsius; `power` in watts.
    """

    memory_used: float = math.nan
    memory_total: float = math.nan
    memory_reserved: float = math.nan
    utilisation: float = math.nan
    temperature: float = math.nan
    power: float = math.nan


@dataclass(frozen=True, slots=True)
class Objectives:
    """What the service is to achieve; exposed, so that alerts and panels follow the settings.

    `latency_ratio` is the share of images to be served within `latency_seconds`, and
    `availability_ratio` that of images not to be refused for reasons on the service's side.
    `bounds`, of the histogram of phases, rise; all processes of a service have the same.
    """

    latency_seconds: float = 0.25
    latency_ratio: float = 0.99
    availability_ratio: float = 0.999
    bounds: tuple[float, ...] = SECONDS


USUAL = Objectives()


class Metrics(Families):
    """The metrics of one process, with methods for what happens in it."""

    def __init__(self, objectives: Objectives = USUAL) -> None:
        super().__init__(objectives.bounds)
        # Cached: looking a child up by its labels costs more than counting.
        self._responses: dict[tuple[str, int], Counter] = {}
        self._refused: dict[tuple[str, str], Counter] = {}
        self._classified: dict[str, tuple[Counter, Counter, dict[str, Histogram]]] = {}
        self._predicted: dict[tuple[str, int | None], tuple[Counter, Histogram]] = {}
        self._served: set[str] = set()
        self._gone: dict[str, float] = {}  # and when their series end
        self._lifetimes = threading.RLock()  # of models' series; scrapes come from a thread
        self._by_model = [
            family
            for family in vars(self).values()
            if isinstance(family, Counter | Gauge | Histogram)
            and family._labelnames[:1] == ("model",)
        ]
        self._latency_goal = objectives.latency_seconds
        self.slo_latency.set(objectives.latency_seconds)
        self.slo_latency_ratio.set(objectives.latency_ratio)
        self.slo_availability_ratio.set(objectives.availability_ratio)
        self.build_info.labels(version("resnet-serve"), python_version(), version("torch")).set(1)
        self.memory_limit.set(runtime.memory_limit())
        self.watch(self.open_files, runtime.open_files_share)

    def watch_model(
        self,
        name: str,
        devices: Iterable[str],
        limit: int,
        depth: Callable[[], int],
        ready: Callable[[], bool],
    ) -> None:
        """Reads a model's gauges at each scrape, and creates all its series at once.

        `rate()` would miss the first event of a counter that appears with it. A model that serves
        again within `GONE_SECONDS` keeps its series.
        """
        with self._lifetimes:
            self._served.add(name)
            self._gone.pop(name, None)
            self._forget({name})
            self.queue_limit.labels(name).set(limit)
            self.last_batch.labels(name).set(0)
            self.watch(self.queue_depth.labels(name), depth)
            self.watch(self.model_ready.labels(name), lambda: float(ready()))
            self.batch_size.labels(name)
            self._series_of(name)
            for device in devices:
                self.engine_errors.labels(name, device)
                self.out_of_memory.labels(name, device)
                self.device_images.labels(name, device)
            for reason in REASONS:
                self.refusals.labels(name, reason)

    def watch_gpu(self, device: str, read: Callable[[], GpuUse]) -> None:
        """Reads a GPU's gauges at each scrape, but for those that are not known now."""
        for name, value in asdict(read()).items():
            if not math.isnan(value):
                gauge: Gauge = getattr(self, f"gpu_{name}")
                self.watch(gauge.labels(device), partial(_part, read, name))

    def unwatch_model(self, name: str) -> None:
        """Removes a model's gauges, and after `GONE_SECONDS` its other series."""
        for gauge in (self.queue_depth, self.queue_limit, self.model_ready, self.last_batch):
            self.drop(gauge, name)
        now = time.monotonic()
        with self._lifetimes:
            self._served.discard(name)
            self._gone[name] = now + GONE_SECONDS
            due = min(self._gone.values()) <= now
        if due:  # Perhaps nobody scrapes.
            self._remove_gone()

    def _series_of(self, model: str) -> tuple[Counter, Counter, dict[str, Histogram]]:
        """The series that each classified image changes."""
        series = self._classified.get(model)
        if series is None:
            phases = {phase: self.phase.labels(model, phase) for phase in PHASES}
            counters = self.images.labels(model), self.slow_images.labels(model)
            series = self._classified[model] = (*counters, phases)
        return series

    def ended(self, names: set[str]) -> set[str]:
        """Those of `names`, the models that have series, whose series end now.

        A name that does not serve, and that nobody unwatched, begins its `GONE_SECONDS`: a late
        request, or another process, gave it its series.
        """
        now = time.monotonic()
        with self._lifetimes:
            absent = names - self._served - {""}
            self._gone = {name: self._gone.get(name, now + GONE_SECONDS) for name in absent}
            return {name for name, end in self._gone.items() if end <= now}

    def _remove_gone(self) -> None:
        """Removes the series of models that have been gone for `GONE_SECONDS`."""
        with self._lifetimes:
            series = [(each, labels) for each in self._by_model for labels in [*each._metrics]]
            ended = self.ended({labels[0] for _, labels in series})
            self._forget(ended)
            for metric, labels in series:
                if labels[0] in ended:
                    metric.remove(*labels)

    def _forget(self, models: set[str]) -> None:
        """Drops cached series of models, which may have been removed."""
        for name in models:
            self._classified.pop(name, None)
        for key in [key for key in [*self._refused] if key[0] in models]:
            self._refused.pop(key, None)
        for known in [known for known in [*self._predicted] if known[0] in models]:
            self._predicted.pop(known, None)

    def responded(self, route: str, status: int) -> None:
        """Counts an HTTP response."""
        counter = self._responses.get((route, status))
        if counter is None:
            counter = self._responses[route, status] = self.requests.labels(route, status)
        counter.inc()

    def refused(self, model: str, reason: str) -> None:
        """Counts an image that was not classified; `model` is "" where none was found."""
        counter = self._refused.get((model, reason))
        if counter is None:
            counter = self._refused[model, reason] = self.refusals.labels(model, reason)
        counter.inc()

    def classified(
        self, model: str, seconds: Mapping[str, float], exemplar: dict[str, str] | None = None
    ) -> None:
        """Counts an image of a watched model, with the seconds of each of `PHASES`.

        `exemplar`: labels that identify its trace.
        """
        images, slow, phases = self._series_of(model)
        images.inc()
        if seconds["total"] > self._latency_goal:
            slow.inc()
        for phase, histogram in phases.items():
            histogram.observe(seconds[phase], exemplar)

    def predicted(self, model: str, class_id: int | None, label: str, confidence: float) -> None:
        """Counts an image's most probable class and its probability, 0 to 1.

        `class_id` None: the class has no series of its own, and counts as `OTHER`.
        """
        series = self._predicted.get((model, class_id))
        if series is None:
            names = (OTHER, OTHER) if class_id is None else (str(class_id), label)
            series = self._predicted[model, class_id] = (
                self.predictions.labels(model, *names),
                self.confidence.labels(model),
            )
        counter, histogram = series
        counter.inc()
        histogram.observe(confidence)

    def computed(self, model: str, device: str, size: int, seconds: float) -> None:
        """Counts a batch of `size` images; called from engine threads."""
        self.device_images.labels(model, device).inc(size)
        self.batch_size.labels(model).observe(size)
        padded = str(1 << (size - 1).bit_length())
        self.batches.labels(model, padded).inc()
        self.batch_seconds.labels(model, padded).inc(seconds)
        self.last_batch.labels(model).set_to_current_time()

    def engine_failed(self, model: str, device: str) -> None:
        """Counts an engine's failure; called from engine threads."""
        self.engine_errors.labels(model, device).inc()

    def lacked_memory(self, model: str, device: str) -> None:
        """Counts a batch that did not fit into memory; called from engine threads."""
        self.out_of_memory.labels(model, device).inc()

    def watch(self, gauge: Gauge, read: Callable[[], float]) -> None:
        """Reads the gauge's value from `read` at each scrape."""
        gauge.set_function(read)

    def drop(self, gauge: Gauge, *labels: str) -> None:
        """Removes a series of a gauge."""
        gauge.remove(*labels)

    def render(self, *, openmetrics: bool = False) -> bytes:
        """The exposition: `CONTENT_TYPE`, or `OPENMETRICS_TYPE`, which alone has exemplars."""
        return exposition(self.collected(), openmetrics=openmetrics)

    def collected(self) -> CollectorRegistry:
        """The registry to expose, without models that have long gone."""
        self._remove_gone()
        return self._registry

    def counted(self) -> dict[str, dict[str, float]]:
        """Each model's samples, by the metric's name and its other labels: NAME/LABEL."""
        samples: dict[str, dict[str, float]] = {}
        for family in self.collected().collect():
            for sample in family.samples:
                labels = dict(sample.labels)
                name = "/".join([sample.name, *(v for k, v in labels.items() if k != "model")])
                if "model" in labels:
                    samples.setdefault(labels["model"], {})[name] = sample.value
        return samples


def _part(read: Callable[[], GpuUse], field: str) -> float:
    return float(getattr(read(), field))


def exposition(registry: CollectorRegistry, *, openmetrics: bool) -> bytes:
    if not openmetrics:
        return generate_latest(registry)
    text: bytes = openmetrics_format.generate_latest(registry, version="1.0.0")  # type: ignore[no-untyped-call]
    return text
