"""All settings: from a YAML file, then the environment, then flags; the later wins.

This is the only module that reads the environment.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
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
from service import keys
from service.errors import ConfigError

PREFIX = "RESNET_SERVE_"
# Read by others under the same prefix: the file's path, and the tests' data.
NOT_SETTINGS = {"CONFIG", "SHARED"}
# The time a control group may take of each period, in versions 2 and 1.
CPU_QUOTAS = (
    ("cpu.max",),
    ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),
)

# Settings whose values nobody may see in a log or a message.
SECRETS = ("api_keys", "admin_keys")
ORIGIN = re.compile(r"\*|https?://[^\s/*,]+")
MOST_MODELS = 256

S = TypeVar("S", bound="Strict")

ModelName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
]


def cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs this process may use: those it may run on, and no more than its cgroup's quota."""
    allowed = len(os.sched_getaffinity(0))
    for files in CPU_QUOTAS:
        try:
            quota, period = " ".join((cgroup / file).read_text() for file in files).split()
            if int(quota) > 0:
                allowed = min(allowed, math.ceil(int(quota) / int(period)))
        except (OSError, ValueError):  # Another version of control groups, or no limit.
            continue
    return max(1, allowed)


def default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet-serve"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(Strict):
    """One served model."""

    spec: str = Field(
        description="builtin:NAME, random:VARIANT, torchvision:VARIANT[:WEIGHTS], hf:OWNER/NAME, "
        "or the path of a bundle or an ONNX file"
    )
    name: ModelName | None = Field(None, description="what requests call it; the bundle's own name")
    architecture: dict[str, Any] | None = Field(
        None, description="fields of an architecture: overrides for random:VARIANT, all for random:"
    )
    device: str | list[str] = Field(
        "auto", description="auto, cpu, cuda:N, or a list: one engine each, sharing the queue"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        "auto",
        description="auto: bf16 where the hardware has it, else fp16 on CUDA, fp32 on CPU; "
        "int8 needs a bundle from `resnet-serve calibrate`",
    )
    engine: Literal["auto", "eager", "compile", "openvino"] = Field(
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
        if not wanted or not all(re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) for name in wanted):
            raise PydanticCustomError(
                "device", "should be auto, cpu, cuda, cuda:N, or a list of these"
            )
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
    )
    max_connections: int = Field(
        4096, ge=1, description="connections, of all front ends together; more are refused"
    )
    max_header_bytes: int = Field(65_536, ge=1024, description="a request's first line and headers")
    header_timeout_s: float = Field(
        10, gt=0, description="time for a request's headers to arrive, and for a TLS handshake"
    )
    workers: int = Field(
        # On few CPUs, what a second process would decode an engine would not compute.
        default_factory=lambda: 1 if cpus() <= 4 else min(8, cpus() // 2),
        ge=1,
        le=64,
        description="front-end processes, which accept, decode and answer; above 1, one more has "
        "the engines; default: 1 on up to 4 CPUs, else half of them, at most 8",
    )
    models: list[ModelSettings] = Field(
        default_factory=lambda: [ModelSettings(spec=DEFAULT_SPEC)],
        min_length=1,
        max_length=MOST_MODELS,
        description="the models; in the environment and as flags a list of SPECs",
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
        "default: the CPUs divided by the front ends, at most 4",
    )
    engine_threads: int | None = Field(
        None,
        ge=1,
        description="threads of a CPU engine's operators; unset: all CPUs but one, which OpenVINO "
        "takes too where an image takes longer than 20 ms and measuring finds that it pays",
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
MODEL_WIDE = tuple(set(ModelSettings.model_fields) - {"spec", "name", "architecture"})


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    config: str | Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings in force.

    `flags` maps settings to values (None: not given); `config` is the path of the YAML file,
    else RESNET_SERVE_CONFIG names it; or what such a file would hold.

    Raises:
        ConfigError: a file is missing or unreadable, a key unknown, a value impossible.
    """
    environ = os.environ if environ is None else environ
    path = None
    if isinstance(config, Mapping):
        file = dict(config)
    else:
        path = config or environ.get(f"{PREFIX}CONFIG")
        file = _read_file(Path(path)) if path else {}
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    layers = [_split_lists(layer) for layer in (_from_environment(environ), given)]
    try:
        return _with_keys_of_files(validated(Settings, **_merge(file, *layers)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from None


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


def _with_keys_of_files(settings: Settings) -> Settings:
    more = {}
    for name in SECRETS:
        path: Path | None = getattr(settings, f"{name}_file")
        if path is not None:
            try:
                more[name] = [*getattr(settings, name), *keys.read(path)]
            except ConfigError as error:
                raise ConfigError(f"{name}_file: {error}") from None
    return settings.model_copy(update=more)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not YAML: not UTF-8") from None
    except yaml.YAMLError as error:
        # Its own text quotes the file, which may hold keys.
        mark = getattr(error, "problem_mark", None)
        where = f" near line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}: not YAML{where}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping of settings, not a {type(content).__name__}")
    return content


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    known = [*Settings.model_fields, *MODEL_WIDE]
    for variable, value in environ.items():
        key = variable.removeprefix(PREFIX)
        if key == variable or key in NOT_SETTINGS:
            continue
        # Kubernetes describes a Service called resnet-serve to its pods in variables such as
        # RESNET_SERVE_PORT=tcp://10.0.0.1:8000, which are no settings of ours.
        if value.startswith("tcp://") or key.startswith(("SERVICE_", "PORT_")):
            continue
        if key == "ARCHITECTURE":
            raise ConfigError(f"{variable}: only a file can describe an architecture")
        if key.lower() not in known:
            near = difflib.get_close_matches(key.lower(), known, n=1)
            hint = f"; did you mean {PREFIX}{near[0].upper()}?" if near else ""
            raise ConfigError(f"environment variable {variable} is no setting{hint}")
        found[key.lower()] = value
    return found


def _split_lists(layer: dict[str, Any]) -> dict[str, Any]:
    """`layer` with the lists that were written with commas; one device stays a name."""
    split = dict(layer)
    for key in ("models", "device", "cors_origins", *SECRETS):
        text = layer.get(key)
        if isinstance(text, str) and (key != "device" or "," in text):
            split[key] = [part.strip() for part in text.split(",") if part.strip()]
    return split


def _merge(file: dict[str, Any], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """`file` with each layer over it; a layer's settings of models go to every model in force."""
    merged = dict(file)
    for layer in layers:
        merged |= {key: value for key, value in layer.items() if key not in MODEL_WIDE}
        if "models" in layer:
            merged["models"] = [{"spec": spec} for spec in layer["models"]]
    for layer in layers:
        wide = {key: layer[key] for key in MODEL_WIDE if key in layer}
        rows = merged.get("models", [{"spec": DEFAULT_SPEC}])
        if wide and isinstance(rows, list):  # Anything else is an error that validation will name.
            merged["models"] = [row | wide if isinstance(row, dict) else row for row in rows]
    return merged


def _one_line(error: ErrorDetails, kind: type[Strict]) -> str:
    """What is wrong with which key, and what it allows."""
    parts = [part for part in error["loc"] if part not in DEVICE_TYPES]
    place = ""
    for part in parts:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else part
    fields = ModelSettings.model_fields if len(parts) > 1 else kind.model_fields
    if error["type"] == "extra_forbidden":
        key = str(parts[-1])
        if len(parts) == 1 and key in MODEL_WIDE:
            return f"{key}: belongs to a model, as models[0].{key}"
        near = difflib.get_close_matches(key, fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(fields)}"
        return f"{place}: unknown key; {hint}"
    if error["type"] in ("missing", "twice"):
        return f"{place}: {'is missing' if error['type'] == 'missing' else error['msg']}"
    message = error["msg"][0].lower() + error["msg"][1:]
    said = f"{place}: {message.replace('input should', 'should')}"
    return said if place.partition("[")[0] in SECRETS else f"{said}, not {error['input']!r}"
