"""Prometheus metrics, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.openmetrics import exposition as openmetrics_format

from service import errors

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text"
OPENMETRICS_TYPE = f"{OPENMETRICS}; version=1.0.0; charset=utf-8"
# Fixed, so that the histograms of many processes add up.
SECONDS = (
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
REASONS = (errors.ServiceError.reason, *(error.reason for error in errors.REFUSALS))
PHASES = ("accept", "decode", "queue", "inference", "total")


class Metrics:
    """One attribute per metric; its labels are positional.

    `multiprocess_mode` matters with several processes; see `service.workers.shared_metrics`.
    """

    def __init__(self) -> None:
        # They double the number of series, and the process's start time says as much.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self._registry = CollectorRegistry()
        # Cached: looking a child up by its labels costs more than counting.
        self._responses: dict[tuple[str, int], Counter] = {}
        self._refused: dict[tuple[str, str], Counter] = {}
        self._classified: dict[str, tuple[Counter, dict[str, Histogram]]] = {}
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.phase = Histogram(
            "resnet_serve_phase_seconds",
            "Time of a classified image by phase: accept, decode, queue, inference, total",
            ("model", "phase"),
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "resnet_serve_batch_size",
            "Images in a computed batch",
            ("model",),
            buckets=SIZES,
            registry=registry,
        )
        self.batches = Counter(
            "resnet_serve_batches",
            "Computed batches by size, rounded up to a power of two",
            ("model", "size"),
            registry=registry,
        )
        self.batch_seconds = Counter(
            "resnet_serve_batch_seconds",
            "Time from forming a batch to its results, by batch size rounded up to a power of two",
            ("model", "size"),
            registry=registry,
        )
        self.last_batch = Gauge(
            "resnet_serve_last_batch_timestamp_seconds",
            "Unix time of the latest batch, in seconds; 0: none yet",
            ("model",),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.requests = Counter(
            "resnet_serve_requests",
            "HTTP responses",
            ("route", "status"),
            registry=registry,
        )
        self.refusals = Counter(
            "resnet_serve_refusals",
            "Images not classified, by reason",
            ("model", "reason"),
            registry=registry,
        )
        self.images = Counter(
            "resnet_serve_images", "Images classified", ("model",), registry=registry
        )
        self.engine_errors = Counter(
            "resnet_serve_engine_errors",
            "Engine failures",
            ("model", "device"),
            registry=registry,
        )
        self.out_of_memory = Counter(
            "resnet_serve_engine_out_of_memory",
            "Batches that did not fit into memory and were computed in halves",
            ("model", "device"),
            registry=registry,
        )
        self.backlog = Histogram(
            "resnet_serve_backlog_seconds",
            "Time that connections, or the data on them, waited to be accepted",
            buckets=SECONDS,
            registry=registry,
        )
        self.loop_delay = Histogram(
            "resnet_serve_loop_delay_seconds",
            "How late the event loop was, sampled 50 times a second",
            buckets=SECONDS,
            registry=registry,
        )
        self.loop_longest_turn = Gauge(
            "resnet_serve_loop_longest_turn_seconds",
            "The latest that the event loop was in the last minute",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.loop_turns = Counter(
            "resnet_serve_loop_turns", "Turns of the event loop in which it read", registry=registry
        )
        self.loop_reads = Counter(
            "resnet_serve_loop_reads", "Reads from connections", registry=registry
        )
        self.loop_accepts = Counter(
            "resnet_serve_loop_accepts", "Connections accepted", registry=registry
        )
        self.in_flight = Gauge(
            "resnet_serve_requests_in_flight",
            "HTTP requests in progress",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.queue_depth = Gauge(
            "resnet_serve_queue_depth",
            "Images accepted and not yet being computed",
            ("model",),
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.queue_limit = Gauge(
            "resnet_serve_queue_limit",
            "Limit on images accepted and not yet being computed",
            ("model",),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.model_ready = Gauge(
            "resnet_serve_model_ready",
            "1 if the model serves, else 0",
            ("model",),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.model_info = Gauge(
            "resnet_serve_model_info",
            "Always 1; its labels describe the model",
            ("model", "architecture", "device", "precision", "engine", "sha256"),
            multiprocess_mode="livemax",
            registry=registry,
        )

    def watch_model(
        self,
        name: str,
        devices: Iterable[str],
        limit: int,
        depth: Callable[[], int],
        ready: Callable[[], bool],
    ) -> None:
        """Reads a model's gauges at each scrape, and creates all its series at once.

        `rate()` would miss the first event of a counter that appears with it.
        """
        self.queue_limit.labels(name).set(limit)
        self.last_batch.labels(name).set(0)
        self.watch(self.queue_depth.labels(name), depth)
        self.watch(self.model_ready.labels(name), lambda: float(ready()))
        self.batch_size.labels(name)
        phases = {phase: self.phase.labels(name, phase) for phase in PHASES}
        self._classified[name] = (self.images.labels(name), phases)
        for device in devices:
            self.engine_errors.labels(name, device)
            self.out_of_memory.labels(name, device)
        for reason in REASONS:
            self.refusals.labels(name, reason)

    def unwatch_model(self, name: str) -> None:
        """Removes the gauges of a model that no longer serves; its counters stay."""
        for gauge in (self.queue_depth, self.queue_limit, self.model_ready, self.last_batch):
            self.drop(gauge, name)

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
        images, phases = self._classified[model]
        images.inc()
        for phase, histogram in phases.items():
            histogram.observe(seconds[phase], exemplar)

    def computed(self, model: str, size: int, seconds: float) -> None:
        """Counts a batch of `size` images; called from engine threads."""
        self.batch_size.labels(model).observe(size)
        padded = str(1 << (size - 1).bit_length())
        self.batches.labels(model, padded).inc()
        self.batch_seconds.labels(model, padded).inc(seconds)
        self.last_batch.labels(model).set_to_current_time()

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
        """The registry to expose."""
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


def exposition(registry: CollectorRegistry, *, openmetrics: bool) -> bytes:
    if not openmetrics:
        return generate_latest(registry)
    text: bytes = openmetrics_format.generate_latest(registry, version="1.0.0")  # type: ignore[no-untyped-call]
    return text


class ModelInfo:
    """A model's series of `model_info`, one per device, which exist while it is shown."""

    def __init__(self, metrics: Metrics, name: str, architecture: str, sha256: str) -> None:
        self._metrics = metrics
        self._name, self._architecture, self._sha256 = name, architecture, sha256
        self._series: dict[str, tuple[str, ...]] = {}
        self._shown = False

    def announce(self, device: str, precision: str, engine: str) -> None:
        """Records what serves on a device from now on; called from engine threads."""
        previous = self._series.get(device)
        labels = (self._name, self._architecture, device, precision, engine, self._sha256)
        self._series[device] = labels
        if self._shown:
            if previous is not None and previous != labels:
                self._metrics.drop(self._metrics.model_info, *previous)
            self._metrics.model_info.labels(*labels).set(1)

    def show(self) -> None:
        self._shown = True
        for labels in self._series.values():
            self._metrics.model_info.labels(*labels).set(1)

    def hide(self) -> None:
        self._shown = False
        for labels in self._series.values():
            self._metrics.drop(self._metrics.model_info, *labels)
