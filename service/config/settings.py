"""All settings, as fields with their defaults, limits and descriptions."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FieldSerializationInfo,
    SecretStr,
    StringConstraints,
    field_serializer,
    field_validator,
)
from pydantic_core import PydanticCustomError

from models.builtin import DEFAULT_SPEC
from service.config import keys
from service.config.capacity import MOST_FRONT_ENDS
from service.config.choices import Engine, Precision
from service.config.sources import NAME_PATTERN, SECRETS
from service.config.variables import default_cache_dir
from service.runtime import cpus

DEVICE = r"auto|cpu|cuda(:\d+)?"
DEVICE_RULE = "should be auto, cpu, cuda, cuda:N, or a list of these"
ORIGIN = re.compile(r"\*|https?://[^\s/*,]+")
COLLECTOR = re.compile(r"https?://[^\s/,]+(/\S*)?")
# Each alone, as looking for what is inside a package that is not there is an error.
TRACING_PACKAGES = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter")
MOST_MODELS = 256

ModelName = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=100)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(Strict):
    """One served model."""

    spec: str = Field(
        description="builtin:NAME, random:VARIANT, torchvision:VARIANT[:WEIGHTS], hf:OWNER/NAME, "
        "or the path of a bundle or an ONNX file, or of a folder with one"
    )
    name: ModelName | None = Field(None, description="what requests call it; the bundle's own name")
    architecture: dict[str, Any] | None = Field(
        None, description="fields of an architecture: overrides for random:VARIANT, all for random:"
    )
    device: str | list[str] = Field(
        "auto",
        description="auto, cpu, cuda:N, or a list: one engine each, sharing the queue",
        json_schema_extra={"pattern": f"^({DEVICE})$", "items": {"pattern": f"^({DEVICE})$"}},
    )
    precision: Precision = Field(
        "auto",
        description="auto: bf16 where the hardware has it, else fp16 on CUDA, fp32 on CPU; "
        "int8 needs a bundle from `resnet-serve calibrate`",
    )
    engine: Engine = Field(
        "auto",
        description="auto: openvino on CPU where installed, else eager until compile is ready",
    )
    parity_tolerance: float | None = Field(
        None,
        ge=0,
        le=1,
        description="refuse an engine with a probability this far from fp32's; "
        "unset: by precision, 0.005 for fp32 to 0.25 for int8",
    )
    share: float = Field(
        1, gt=0, le=1000, description="of the device's time, against other models' that wait for it"
    )
    max_batch: int = Field(
        32, ge=1, le=1024, description="images computed at once, where measuring finds that it pays"
    )
    max_delay_ms: float = Field(
        0, ge=0, le=60_000, description="wait this long for a fuller batch; 0: compute what waits"
    )
    max_queue: int = Field(256, ge=1, description="images accepted and not yet computing")
    max_queue_bytes: int = Field(
        256 * 2**20, ge=1, description="bytes of bodies and pixels accepted and not yet computing"
    )

    @field_validator("device")
    @classmethod
    def _devices_are_devices(cls, device: str | list[str]) -> str | list[str]:
        wanted = device if isinstance(device, list) else [device]
        if not wanted or not all(re.fullmatch(DEVICE, name) for name in wanted):
            raise PydanticCustomError("device", DEVICE_RULE)
        return device


class Settings(Strict):
    """The service. `models`: the first is the default one."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    allow_anonymous: bool = Field(
        False, description="serve other hosts without api_keys; otherwise that is refused"
    )
    api_keys: list[keys.Key] = Field(
        [],
        description="one of them is needed for /v1; in the environment separated by commas; "
        "none: everybody may",
    )
    api_keys_file: Path | None = Field(
        None,
        description="more of them, one a line, # begins a comment; others than its owner and group "
        "must not read it",
    )
    admin_keys: list[keys.Key] = Field(
        [], description="one of them is needed to change models; each is an API key too"
    )
    admin_keys_file: Path | None = Field(None, description="more of them, as in api_keys_file")
    tls_certificate: Path | None = Field(
        None, description="PEM file of the certificate and its chain; with it, HTTPS is served"
    )
    tls_key: Path | None = Field(None, description="PEM file of its private key, no password")
    cors_origins: list[str] = Field(
        [],
        description="origins, such as https://example.org, whose pages may use the API, or *; "
        "none: no other than the service's own",
        json_schema_extra={"items": {"type": "string", "pattern": f"^({ORIGIN.pattern})$"}},
    )
    max_connections: int = Field(
        4096, ge=1, description="connections, of all front ends together; more are refused"
    )
    max_header_bytes: int = Field(65_536, ge=1024, description="a request's first line and headers")
    header_timeout_s: float = Field(
        10, gt=0, description="time for a request's headers to arrive, and for a TLS handshake"
    )
    workers: int = Field(
        # Until it is known what a request costs; see `service.cli.trial`.
        default_factory=lambda: 1 if cpus() <= 4 else min(8, cpus() // 2),
        ge=1,
        le=MOST_FRONT_ENDS,
        description="front-end processes, which accept, decode and answer; above 1, one more has "
        "the engines; default: chosen by measuring what a request costs",
    )
    models: list[ModelSettings] = Field(
        default_factory=lambda: [ModelSettings(spec=DEFAULT_SPEC)],
        min_length=1,
        max_length=MOST_MODELS,
        description="the models; in the environment and as flags a list of SPECs or NAME=SPECs",
    )
    request_timeout_ms: float = Field(
        10_000, gt=0, description="a request's deadline unless X-Request-Timeout-Ms says otherwise"
    )
    max_body_bytes: int = Field(20 * 2**20, ge=1, description="one image's request body")
    max_batch_body_bytes: int = Field(100 * 2**20, ge=1, description="a batch request's body")
    max_upload_bytes: int = Field(
        512 * 2**20,
        ge=1,
        description="bodies that are being received, of all front ends together; one that comes "
        "alone is taken whatever its size",
    )
    upload_timeout_s: float = Field(
        60, gt=0, description="time for a body to arrive, if its deadline is not earlier"
    )
    max_batch_images: int = Field(64, ge=1, description="images in a batch request")
    max_pixels: int = Field(
        50_000_000, ge=1, description="an image's width times height; half of it for WebP"
    )
    decode_threads: int = Field(
        default_factory=lambda given: max(1, min(4, cpus() // given.get("workers", 1))),
        ge=1,
        description="threads that decode images, in each front end; "
        "default: chosen by measuring what a request costs",
    )
    engine_threads: int | None = Field(
        None,
        ge=1,
        description="threads that compute on the CPU; unset: chosen for each model by measuring "
        "what a request costs, so that decoding and HTTP keep the CPUs they need",
    )
    engine_timeout_s: float = Field(
        30,
        gt=0,
        le=3600,
        description="a batch that takes longer, and 20 times as long as measured, is taken to "
        "hang: its requests and those that wait are answered 503, and the process must be replaced",
    )
    shutdown_grace_s: float = Field(
        1.0, ge=0, description="after SIGTERM, go on serving this long while /health/ready is 503"
    )
    shutdown_timeout_s: float = Field(
        30, gt=0, description="after the grace, wait this long for accepted requests"
    )
    load_timeout_s: float = Field(
        600, gt=0, description="a model loaded while serving (PUT, SIGHUP) must be ready this soon"
    )
    cache_dir: Path = Field(
        default_factory=default_cache_dir,
        description="compiled engines and downloads are kept here between starts; default: "
        "$XDG_CACHE_HOME/resnet-serve, or ~/.cache/resnet-serve",
    )
    tracing: bool = Field(
        False,
        description="send OpenTelemetry traces, as the standard OTEL_* variables say; needs the "
        "extra otel",
    )
    otlp_endpoint: str | None = Field(
        None,
        description="send them to this collector, such as http://localhost:4318, by OTLP over "
        "HTTP; the same as tracing and OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    trace_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the requests that are traced where their caller does not say; unset: "
        "OTEL_TRACES_SAMPLER, or all",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least that is logged"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="of the lines on stderr; json: one object a line"
    )

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise PydanticCustomError(
                    "origin", "should be origins such as https://example.org, without a path, or *"
                )
        return origins

    @field_validator("tracing", "otlp_endpoint")
    @classmethod
    def _can_be_traced(cls, asked: bool | str | None) -> bool | str | None:
        if isinstance(asked, str) and not COLLECTOR.fullmatch(asked):
            raise PydanticCustomError("collector", "should be a URL such as http://localhost:4318")
        if asked and not all(find_spec(package) for package in TRACING_PACKAGES):
            raise PydanticCustomError(
                "extra", "should be unset without OpenTelemetry: pip install 'resnet-serve[otel]'"
            )
        return asked

    @property
    def traced(self) -> bool:
        """Whether traces are sent."""
        return self.tracing or self.otlp_endpoint is not None

    @field_serializer(*SECRETS, when_used="json")
    def _told_on_purpose(self, given: list[SecretStr], info: FieldSerializationInfo) -> list[str]:
        return [key.get_secret_value() if info.context == SECRETS else str(key) for key in given]

    def revealed(self) -> dict[str, Any]:
        """As JSON can hold it, for a process that shall have the same settings: with the keys."""
        return self.model_dump(mode="json", context=SECRETS)

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: list[ModelSettings]) -> list[ModelSettings]:
        names = [model.name for model in models if model.name]
        for name in names:
            if names.count(name) > 1:
                raise PydanticCustomError("twice", f"the name {name!r} is given twice")
        return models
