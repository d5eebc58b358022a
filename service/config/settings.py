"""All settings, as fields with their defaults, limits and descriptions.

`setting_types` holds their types and what those refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

from pydantic import (
    Field,
    FieldSerializationInfo,
    SecretStr,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from models.builtin import DEFAULT_SPEC
from service.config import keys
from service.config.capacity import MOST_FRONT_ENDS
from service.config.choices import PLATFORMS, Decode, Engine, Platform, Precision
from service.config.setting_types import (
    LONGEST_S,
    MOST_BYTES,
    Bounds,
    Code,
    Collector,
    Count,
    Devices,
    FilePath,
    GrpcPort,
    Host,
    ModelName,
    Origins,
    Route,
    Seconds,
    Share,
    Size,
    SocketMode,
    Spec,
    Strict,
    Tracing,
)
from service.config.sources import SECRETS
from service.config.variables import default_cache_dir
from service.runtime import cpus

MOST_MODELS = 256
MOST_THREADS = 1024


class Limits(NamedTuple):
    """How many images may be in a model's batch, and in its queue."""

    max_batch: int
    max_queue: int


# A large GPU gains from batches of up to 256 images; a CPU, which is slower to fill its queue,
# seldom from more than 32.
ON_CPU, ON_GPU = Limits(32, 256), Limits(256, 1024)


class ModelSettings(Strict):
    """One served model."""

    spec: Spec = Field(
        description="builtin:NAME, random:VARIANT, torchvision:VARIANT[:WEIGHTS], onnx-zoo:NAME, "
        "hf:OWNER/NAME, or the path of a bundle, an ONNX file, or a folder that contains one"
    )
    name: ModelName | None = Field(None, description="name in requests; default: the bundle's own")
    architecture: dict[str, Any] | None = Field(
        None, description="fields of an architecture: overrides for random:VARIANT, all for random:"
    )
    device: Devices = Field(
        "auto",
        description="auto: the first GPU, or cpu without one; cuda: the first GPU; cuda:N; "
        "cuda:all; or a list: one engine on each. A named GPU that is missing is an error",
    )
    precision: Precision = Field(
        "auto",
        description="auto: bf16 if the hardware supports it, else fp16 on CUDA and fp32 on CPU; "
        "int8 requires a bundle from `resnet-serve calibrate`",
    )
    engine: Engine = Field(
        "auto",
        description="auto: fused on CUDA, with eager where it cannot start; on CPU openvino if "
        "installed, else eager until compile is ready",
    )
    decode: Decode = Field(
        "host",
        description="device: plain baseline JPEGs are decoded on the CUDA device, if its pixels "
        "agree with the host's at the start; all other images on the host",
    )
    exact_decode: bool = Field(
        False,
        description="decode large JPEGs in full instead of at 1/2, 1/4 or 1/8 of their size, so "
        "that probabilities equal those of a notebook; only with decode: host",
    )
    parity_tolerance: float | None = Field(
        None,
        ge=0,
        le=1,
        description="reject an engine if any probability differs from fp32 by more than this, or "
        "without classes any feature, in parts of the largest; unset: depends on the precision, "
        "from 0.005 for fp32 to 0.25 for int8",
    )
    share: float = Field(
        1, gt=0, le=1000, description="weight in the fair scheduling of a device that models share"
    )
    max_batch: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="maximum batch size; lower where measuring finds that more does not pay; "
        "unset: 256 on CUDA, 32 on CPU",
    )
    max_delay_ms: float = Field(
        0, ge=0, le=60_000, description="time to wait for a fuller batch; 0: do not wait"
    )
    max_queue: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="maximum number of images in the queue; unset: 1024 on CUDA, 256 on CPU, and "
        "at least 4 * max_batch",
    )
    max_queue_bytes: Size = Field(
        256 * 2**20, description="maximum total size of bodies and pixels in the queue"
    )

    @model_validator(mode="after")
    def _check_exact(self) -> Self:
        if self.exact_decode and self.decode == "device":
            raise PydanticCustomError(
                "exact_decode", "exact_decode: a device's pixels differ slightly; use decode: host"
            )
        return self

    def limits(self, devices: Sequence[str]) -> Limits:
        """Those in force on `devices`; unset ones are the largest that any of them has."""
        usual = ON_GPU if any(device.startswith("cuda") for device in devices) else ON_CPU
        max_batch = self.max_batch or usual.max_batch
        return Limits(max_batch, self.max_queue or max(usual.max_queue, 4 * max_batch))


class Settings(Strict):
    """The service. The first of `models` is the default model."""

    host: Host = Field(
        "127.0.0.1",
        description="address or name to listen on, with all its addresses; localhost: loopback of "
        'both families; 0.0.0.0: every IPv4 address; "::": every address; unix:/PATH: a unix '
        "socket",
    )
    port: int = Field(
        8000,
        ge=0,
        le=65535,
        description="port to listen on; 0: any free port; a unix socket has none; default: "
        "AIP_HTTP_PORT or SAGEMAKER_BIND_TO_PORT, which Vertex AI and SageMaker set, else 8000",
    )
    grpc_port: GrpcPort = Field(
        None,
        description="port for gRPC on the same host; 0: any free port; unset: no gRPC; requires "
        "the extra grpc",
    )
    grpc_max_streams: Count = Field(
        64,
        description="streams of ModelStreamInfer that are open at once, in each front end; each "
        "may take max_batch_body_bytes of memory",
    )
    socket_mode: SocketMode = Field(
        "660",
        description="permissions of a unix socket's file, in octal and in quotes; who may write to "
        "it may use the service",
    )
    allow_anonymous: bool = Field(
        False, description="accept other hosts without api_keys; otherwise the start fails"
    )
    api_keys: list[keys.Key] = Field(
        [],
        description="one of them is required for /v1; in the environment, separated by commas; "
        "empty: no key required",
    )
    api_keys_file: FilePath | None = Field(
        None,
        description="more API keys, one per line, # starts a comment; must be readable only by its "
        "owner and group",
    )
    admin_keys: list[keys.Key] = Field(
        [], description="keys, one of which is required to change models; each is an API key too"
    )
    admin_keys_file: FilePath | None = Field(
        None, description="more admin keys, like api_keys_file"
    )
    raise_priority: Literal["key", "admin_key", "anyone"] = Field(
        "key",
        description="who may use priority 1 of /v2, the one above the default; for others it is "
        "the default; key: whoever sends an API or admin key",
    )
    allow_code: Code = Field(
        default_factory=list,
        description="code of your own that may be imported and run as the block or the head of a "
        "bundle that names it: package.module:Class, or package.module for all classes of a "
        "module; in the environment, separated by commas; empty: none",
    )
    model_folder: FilePath | None = Field(
        None,
        description="folder whose files an admin key may serve (PUT, /v2's load), beside those "
        "that the configuration names; unset: none",
    )
    tls_certificate: FilePath | None = Field(
        None, description="PEM file with the certificate and its chain; enables HTTPS"
    )
    tls_key: FilePath | None = Field(None, description="PEM file with the private key, no password")
    cors_origins: Origins = Field(
        [],
        description="origins, such as https://example.org, whose pages may use the API, or *; "
        "empty: only the service's own",
    )
    platforms: list[Platform] = Field(
        list(PLATFORMS),
        description="platforms whose routes are served: kserve_v1 (and TensorFlow Serving), "
        "torchserve, sagemaker, vertex; in the environment, separated by commas; empty: none",
    )
    vertex_health_route: Route = Field(
        None, description="path of Vertex AI's health checks; default: AIP_HEALTH_ROUTE"
    )
    vertex_predict_route: Route = Field(
        None, description="path of Vertex AI's predictions; default: AIP_PREDICT_ROUTE"
    )
    max_connections: Count = Field(
        4096,
        description="limit for all front ends together; beyond it, those that idle longest (5 s or "
        "more) give way, else more are refused",
    )
    keep_alive_s: Seconds = Field(
        3660,
        description="time after which an idle connection is closed; set it longer than the idle "
        "timeout of the load balancer, which must be the one to close",
    )
    max_header_bytes: int = Field(
        65_536, ge=1024, le=MOST_BYTES, description="limit for request line and headers"
    )
    header_timeout_s: Seconds = Field(
        10, description="time limit for receiving headers, and for a TLS handshake"
    )
    workers: int = Field(
        # Until the cost of a request has been measured; see `service.cli.trial`.
        default_factory=lambda: 1 if cpus() <= 4 else min(8, cpus() // 2),
        ge=1,
        le=MOST_FRONT_ENDS,
        description="front-end processes, which accept requests, decode and respond; with more "
        "than 1, or with several devices, the engines run in a further process for each device; "
        "default: chosen by measuring the cost of a request",
    )
    models: list[ModelSettings] = Field(
        default_factory=lambda: [ModelSettings(spec=DEFAULT_SPEC)],
        min_length=1,
        max_length=MOST_MODELS,
        description="models to serve; in the environment and as flags, a list of SPEC or NAME=SPEC",
    )
    request_timeout_ms: float = Field(
        10_000, gt=0, description="a request's deadline, unless X-Request-Timeout-Ms sets another"
    )
    max_body_bytes: Size = Field(20 * 2**20, description="limit for one image's request body")
    max_batch_body_bytes: Size = Field(100 * 2**20, description="limit for a batch request's body")
    max_upload_bytes: Size = Field(
        512 * 2**20,
        description="maximum total size of the bodies being received, over all front ends; the "
        "largest of each front end does not count",
    )
    upload_timeout_s: Seconds = Field(
        60, description="time limit for receiving a body, unless the deadline is earlier"
    )
    min_upload_bytes_per_s: int = Field(
        10_000,
        ge=0,
        le=MOST_BYTES,
        description="refuse a body that arrives more slowly for five seconds or longer; 0: none",
    )
    max_batch_images: Count = Field(64, description="limit of images in a batch request")
    max_pixels: Size = Field(
        50_000_000,
        description="maximum number of pixels in an image; half as many for WebP, AVIF and HEIC",
    )
    decode_threads: int = Field(
        default_factory=lambda values: max(1, min(4, cpus() // values.get("workers", 1))),
        ge=1,
        le=MOST_THREADS,
        description="threads per front end that decode images; "
        "default: chosen by measuring the cost of a request",
    )
    engine_threads: int | None = Field(
        None,
        ge=1,
        le=MOST_THREADS,
        description="threads per engine on the CPU; unset: chosen for each model by measuring the "
        "cost of a request, which leaves decoding and HTTP the CPUs that they need",
    )
    engine_timeout_s: float = Field(
        30,
        gt=0,
        le=3600,
        description="a batch that takes longer than this, and 20 times longer than measured, "
        "counts as hung: its requests and those in the queue get 503, and the process must be "
        "replaced; with several processes, one that does not respond for this long, and at least "
        "10 s, is replaced as well",
    )
    shutdown_grace_s: float = Field(
        1.0,
        ge=0,
        le=LONGEST_S,
        description="after SIGTERM, keep serving this long with /health/ready at 503",
    )
    shutdown_timeout_s: Seconds = Field(
        30, description="after the grace period, wait this long for accepted requests"
    )
    load_timeout_s: Seconds = Field(
        600, description="time limit for loading a model while serving (PUT, SIGHUP)"
    )
    cache_dir: FilePath = Field(
        default_factory=default_cache_dir,
        description="folder that keeps compiled engines and downloads between starts; default: "
        "$XDG_CACHE_HOME/resnet-serve, or ~/.cache/resnet-serve",
    )
    metrics_classes: int = Field(
        100,
        ge=0,
        le=10_000,
        description="how many classes of each model the metrics count one by one, the first by "
        "number; the others count together; 0: neither classes nor confidences are counted",
    )
    tracing: Tracing = Field(
        False,
        description="send OpenTelemetry traces, configured by the standard OTEL_* variables; "
        "requires the extra otel",
    )
    otlp_endpoint: Collector = Field(
        None,
        description="send traces to this collector, such as http://localhost:4318, by OTLP over "
        "HTTP; equivalent to tracing with OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    trace_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of requests to trace if the client does not decide; unset: "
        "OTEL_TRACES_SAMPLER, or all",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe level that is logged"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="format of the log on stderr; json: one object per line"
    )
    access_log: bool = Field(
        False,
        description="log every request at the level info, with the address of its client; of "
        "refused ones at most ten a second for each reason",
    )
    latency_buckets_ms: Bounds = Field(
        [],
        description="bounds of the metrics' latency histogram, rising; slo_latency_ms and "
        "request_timeout_ms are added; in the environment, separated by commas; empty: 15 from "
        "0.25 to 10,000",
    )
    slo_latency_ms: float = Field(
        250,
        gt=0,
        allow_inf_nan=False,
        description="latency goal of an image, for alerts and dashboards",
    )
    slo_latency_ratio: Share = Field(
        0.99, description="share of classified images that are to meet slo_latency_ms"
    )
    slo_availability_ratio: Share = Field(
        0.999,
        description="share of images that are not to be refused for reasons on the service's side",
    )

    @property
    def traced(self) -> bool:
        """Whether to send traces."""
        return self.tracing or self.otlp_endpoint is not None

    @field_serializer(*SECRETS, when_used="json")
    def _mask(self, secrets: list[SecretStr], info: FieldSerializationInfo) -> list[str]:
        return [key.get_secret_value() if info.context == SECRETS else str(key) for key in secrets]

    def revealed(self) -> dict[str, Any]:
        """As JSON with the keys unmasked, for another process with the same settings."""
        return self.model_dump(mode="json", context=SECRETS)

    @field_validator("models")
    @classmethod
    def _check_names(cls, models: list[ModelSettings]) -> list[ModelSettings]:
        names = [model.name for model in models if model.name]
        for name in names:
            if names.count(name) > 1:
                raise PydanticCustomError("twice", f"the name {name!r} is used twice")
        return models
