"""The declarations of the service's Prometheus metrics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

# Fixed, so that the histograms of many processes add up.
SECONDS = (
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
# Of probabilities; a sound model gives most images the highest.
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Families:
    """One attribute per metric; its labels are positional. `bounds` are those of `phase`.

    `multiprocess_mode` matters with several processes; see `service.workers.shared_metrics`.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        # They double the number of series, and the process's start time says as much.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        counter = partial(Counter, registry=registry)
        histogram = partial(Histogram, registry=registry)
        gauge = partial(Gauge, registry=registry, multiprocess_mode="livemax")

        # Images and requests.
        self.phase = histogram(
            "resnet_serve_phase_seconds",
            "Time of a classified image by phase: accept, decode, queue, inference, total",
            ("model", "phase"),
            buckets=bounds,
        )
        self.batch_size = histogram(
            "resnet_serve_batch_size", "Images in a computed batch", ("model",), buckets=SIZES
        )
        self.batches = counter(
            "resnet_serve_batches",
            "Computed batches by size, rounded up to a power of two",
            ("model", "size"),
        )
        self.batch_seconds = counter(
            "resnet_serve_batch_seconds",
            "Time from forming a batch to its results, by batch size rounded up to a power of two",
            ("model", "size"),
        )
        self.last_batch = gauge(
            "resnet_serve_last_batch_timestamp_seconds",
            "Unix time of the latest batch, in seconds; 0: none yet",
            ("model",),
        )
        self.requests = counter(
            "resnet_serve_requests",
            "Responses; of gRPC, with the HTTP status of the same outcome",
            ("route", "status"),
        )
        self.refusals = counter(
            "resnet_serve_refusals", "Images not classified, by reason", ("model", "reason")
        )
        self.images = counter("resnet_serve_images", "Images classified", ("model",))
        self.predictions = counter(
            "resnet_serve_predictions",
            "Images by their most probable class; classes without a series of their own: other",
            ("model", "class_id", "class"),
        )
        self.confidence = histogram(
            "resnet_serve_confidence_ratio",
            "Probability of an image's most probable class, 0 to 1",
            ("model",),
            buckets=CONFIDENCES,
        )
        self.slow_images = counter(
            "resnet_serve_slow_images",
            "Images classified in more than the latency goal",
            ("model",),
        )

        # Engines and devices.
        self.engine_errors = counter(
            "resnet_serve_engine_errors", "Engine failures", ("model", "device")
        )
        self.out_of_memory = counter(
            "resnet_serve_engine_out_of_memory",
            "Batches that did not fit into memory and were computed in halves",
            ("model", "device"),
        )
        self.device_images = counter(
            "resnet_serve_device_images", "Images computed, by device", ("model", "device")
        )
        self.gpu_graphs = gauge(
            "resnet_serve_gpu_graphs",
            "CUDA graphs that a model's engine captured; 0: it launches each kernel by itself",
            ("model", "device"),
        )
        self.gpu_memory_used = gauge(
            "resnet_serve_gpu_memory_used_bytes",
            "Memory of the GPU in use, by all processes",
            ("device",),
        )
        self.gpu_memory_total = gauge(
            "resnet_serve_gpu_memory_total_bytes", "Memory of the GPU", ("device",)
        )
        self.gpu_memory_reserved = gauge(
            "resnet_serve_gpu_memory_reserved_bytes",
            "Memory of the GPU that PyTorch has reserved for the service",
            ("device",),
            multiprocess_mode="livesum",
        )
        self.gpu_utilisation = gauge(
            "resnet_serve_gpu_utilisation_ratio",
            "Share of the time in which the GPU computed, 0 to 1",
            ("device",),
        )
        self.gpu_temperature = gauge(
            "resnet_serve_gpu_temperature_celsius", "Temperature of the GPU", ("device",)
        )
        self.gpu_power = gauge(
            "resnet_serve_gpu_power_watts", "Power that the GPU draws", ("device",)
        )

        # Front ends.
        self.backlog = histogram(
            "resnet_serve_backlog_seconds",
            "Time that connections, or the data on them, waited to be accepted",
            buckets=SECONDS,
        )
        self.loop_delay = histogram(
            "resnet_serve_loop_delay_seconds",
            "How late the event loop was, sampled 50 times a second",
            buckets=SECONDS,
        )
        self.loop_longest_turn = gauge(
            "resnet_serve_loop_longest_turn_seconds",
            "The latest that the event loop was in the last minute",
        )
        self.loop_turns = counter(
            "resnet_serve_loop_turns", "Turns of the event loop in which it read"
        )
        self.loop_reads = counter("resnet_serve_loop_reads", "Reads from connections")
        self.loop_accepts = counter("resnet_serve_loop_accepts", "Connections accepted")
        self.in_flight = gauge(
            "resnet_serve_requests_in_flight", "Requests in progress", multiprocess_mode="livesum"
        )

        # Served models.
        self.queue_depth = gauge(
            "resnet_serve_queue_depth",
            "Images accepted and not yet being computed",
            ("model",),
            multiprocess_mode="livesum",
        )
        self.queue_limit = gauge(
            "resnet_serve_queue_limit",
            "Limit on images accepted and not yet being computed",
            ("model",),
        )
        self.model_ready = gauge(
            "resnet_serve_model_ready", "1 if the model serves, else 0", ("model",)
        )
        self.load_seconds = gauge(
            "resnet_serve_model_load_seconds",
            "Time from opening the model until its engine on the device first served",
            ("model", "device"),
        )
        self.model_info = gauge(
            "resnet_serve_model_info",
            "Always 1; its labels describe the model",
            ("model", "architecture", "device", "precision", "engine", "sha256"),
        )

        # The service.
        self.build_info = gauge(
            "resnet_serve_build_info",
            "Always 1; its labels are the versions of the service, of Python and of torch",
            ("version", "python", "torch"),
        )
        self.open_files = gauge(
            "resnet_serve_open_files_ratio",
            "Open files and sockets over their limit, in the process that is nearest to it",
        )
        self.memory_limit = gauge(
            "resnet_serve_memory_limit_bytes",
            "Memory that the service may use: the limit of its control group, or all of the host",
            multiprocess_mode="livemin",
        )
        self.certificate_expiry = gauge(
            "resnet_serve_certificate_expiry_timestamp_seconds",
            "Unix time at which the certificate in use expires, in seconds; 0: no TLS",
        )
        self.slo_latency = gauge(
            "resnet_serve_slo_latency_seconds", "Latency goal, the setting slo_latency_ms"
        )
        self.slo_latency_ratio = gauge(
            "resnet_serve_slo_latency_ratio",
            "Share of classified images that are to meet the latency goal",
        )
        self.slo_availability_ratio = gauge(
            "resnet_serve_slo_availability_ratio",
            "Share of images that are not to be refused for reasons on the service's side",
        )
