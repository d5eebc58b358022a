"""All settings: from a YAML file, then the environment, then flags; the later wins.

Nothing else reads the environment, but for `models.processor`, whose variable is no setting.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FieldSerializationInfo,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_serializer,
    field_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from models.builtin import DEFAULT_SPEC
from models.suggestions import nearest
from service.config import keys, sources
from service.config.capacity import MOST_FRONT_ENDS
from service.config.choices import Engine, Precision
from service.config.sources import NAME_PATTERN, SECRETS, Merged, Place, Source, shown
from service.errors import ConfigError
from service.runtime import cpus

DEVICE, DEVICES = r"auto|cpu|cuda(:\d+)?", "should be auto, cpu, cuda, cuda:N, or a list of these"
LITERALS = re.compile(r"'([^']*)'")
PREFIX = sources.PREFIX
# What only one model can have.
OF_ONE_MODEL = ("spec", "name", "architecture")
ORIGIN = re.compile(r"\*|https?://[^\s/*,]+")
COLLECTOR = re.compile(r"https?://[^\s/,]+(/\S*)?")
# Each alone, as looking for what is inside a package that is not there is an error.
TRACING_PACKAGES = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter")
MOST_MODELS = 256
# No folder for anybody, root included; as part of a path it tells why.
NO_HOME = Path(os.devnull) / "no-home"

S = TypeVar("S", bound="Strict")

ModelName = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=100)]


def settle_home() -> None:
    """Gives a user without a home, such as a container's, one that cannot be made.

    Libraries ask where it is when they are imported, OpenVINO's telemetry among them, and raise if
    nobody knows; that nothing can be kept there they take.
    """
    try:
        Path.home()
    except RuntimeError:  # Neither HOME nor a line in /etc/passwd.
        os.environ["HOME"] = str(NO_HOME)


def default_cache_dir() -> Path:
    """In the user's cache. That there is no home is logged like any folder that cannot be made."""
    settle_home()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet-serve"


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
            raise PydanticCustomError("device", DEVICES)
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


# pydantic names the type it tried in the place of an error; a key is what a person looks for.
DEVICE_TYPES = ("str", "list[str]")
# What RESNET_SERVE_DEVICE and --device mean: the same for every model.
MODEL_WIDE = tuple(name for name in ModelSettings.model_fields if name not in OF_ONE_MODEL)
LISTS = ("models", "device", "cors_origins", *SECRETS)
# What pydantic calls them, in its own words.
WORDS = {
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "finite_number": "should be a number",
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
    "string_type": "should be text",
    "list_type": "should be a list",
    "dict_type": "should be a mapping",
    "model_type": "should be a mapping of settings",
    "path_type": "should be a path",
    "missing": "is missing",
}


@dataclass(frozen=True)
class Reading:
    """What was read: the `settings` that it makes, or None and the `problems`, a line each;
    `given`: the values before they were checked, with their origins; `path`: the file's."""

    settings: Settings | None
    problems: list[str]
    given: Merged
    path: str | None


def read(
    flags: Mapping[str, Any] | None = None,
    *,
    config: str | Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Reading:
    """The settings in force and where they are from, or everything that is wrong.

    `flags` maps settings to values (None: not given); `config` is the path of the YAML file,
    else RESNET_SERVE_CONFIG names it; or what such a file would hold.
    """
    environ = os.environ if environ is None else environ
    path = None
    problems: list[str] = []
    file = Source("file", dict(config) if isinstance(config, Mapping) else {})
    try:
        if not isinstance(config, Mapping):
            path = config or environ.get(f"{PREFIX}CONFIG")
            file = sources.of_file(Path(path)) if path else file
    except ConfigError as error:
        problems.append(str(error))
    known = [*Settings.model_fields, *MODEL_WIDE]
    layers = (
        file,
        sources.of_environment(environ, known, LISTS),
        sources.of_flags(flags or {}, LISTS),
    )
    problems += [problem for layer in layers for problem in layer.problems]
    given = sources.merged(layers, MODEL_WIDE, DEFAULT_SPEC)
    settings = None
    try:
        settings = Settings.model_validate(given.values)
    except ValidationError as error:
        problems += _each_once(error, given)
    if settings and not problems:
        settings, problems = _with_keys_of_files(settings, given)
    return Reading(None if problems else settings, problems, given, path)


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    config: str | Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings in force; arguments as for `read`.

    Raises:
        ConfigError: a file is missing or unreadable, a key unknown, a value impossible.
    """
    reading = read(flags, config=config, environ=environ)
    if reading.settings is None:
        raise ConfigError(reading.problems[0])
    return reading.settings


def client_key(file: Path | None) -> str | None:
    """The key to send to a service: the first of a file, else RESNET_SERVE_KEY's; None: neither.

    Raises:
        ConfigError: see `service.config.keys.read`.
    """
    if file is not None:
        return keys.read(file)[0].get_secret_value()
    return os.environ.get(f"{PREFIX}KEY") or None


def environment(**more: str) -> dict[str, str]:
    """This process's environment and `more`, for a child."""
    return dict(os.environ) | more


def validated(kind: type[S], /, **values: Any) -> S:
    """Settings of a kind from values of any types.

    Raises:
        ConfigError: one line that names the key and what it allows.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error.errors()[0], kind)) from None


def _with_keys_of_files(settings: Settings, given: Merged) -> tuple[Settings, list[str]]:
    more, problems = {}, []
    for name in SECRETS:
        path: Path | None = getattr(settings, f"{name}_file")
        if path is not None:
            try:
                more[name] = [*getattr(settings, name), *keys.read(path)]
            except ConfigError as error:
                where = given.origin((f"{name}_file",))
                problems.append(f"{where[1] + ': ' if where else ''}{name}_file: {error}")
    return settings.model_copy(update=more), problems


def _each_once(errors: ValidationError, given: Merged) -> list[str]:
    """A line for each value that is wrong, in the order of a file's lines; the others first."""
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for error in errors.errors():
        if error["type"] == "default_factory_not_called":  # It needs what is wrong elsewhere.
            continue
        place = _place(error)
        kind, where = given.origin(place) or ("", "")
        line = int(where.rpartition(":")[2]) if re.search(r":\d+$", where) else 0
        # What goes to every model is wrong only once.
        once = (where, shown(place) if kind == "file" else str(place[-1]))
        said = f"{where + ': ' if where else ''}{_one_line(error, Settings)}"
        found.setdefault(once, (line, said))
    return [said for _, said in sorted(found.values(), key=lambda each: each[0])]


def _place(error: ErrorDetails) -> Place:
    return tuple(part for part in error["loc"] if part not in DEVICE_TYPES)


def _one_line(error: ErrorDetails, kind: type[Strict]) -> str:
    """What is wrong with which key, and what it allows."""
    parts = _place(error)
    place = shown(parts)
    if error["type"] == "extra_forbidden":
        fields = ModelSettings.model_fields if len(parts) > 1 else kind.model_fields
        key = str(parts[-1])
        if len(parts) == 1 and key in MODEL_WIDE:
            return f"{key}: belongs to a model, as models[0].{key}"
        near = nearest(key, fields)
        hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(fields)}"
        return f"{place}: unknown key; {hint}"
    message = WORDS.get(error["type"], error["msg"])
    if parts[-1:] == ("device",):  # It may be of two types.
        message = DEVICES
    message = message[0].lower() + message[1:]
    said = f"{place}: {message.replace('input should', 'should')}"
    # A secret is not shown; of what is missing or given twice there is nothing to show.
    if place.partition("[")[0] in SECRETS or error["type"] in ("missing", "twice"):
        return said
    value = error["input"]
    near = (
        nearest(str(value), LITERALS.findall(message)) if error["type"] == "literal_error" else []
    )
    return f"{said}, not {value!r}{f'; did you mean {near[0]}?' if near else ''}"
