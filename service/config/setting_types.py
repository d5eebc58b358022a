"""The types of settings: what is valid beyond a field's own limits, and what is wrong otherwise."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from models.builtin import DEFAULT_SPEC
from models.extras import install
from models.own_code import ALLOWED
from service.config.addresses import path_problem, unix_path
from service.config.sources import NAME_PATTERN

# A month, and a tebibyte: beyond them timers and the integers of C overflow.
LONGEST_S = 30 * 86_400
MOST_BYTES = 2**40
MOST_AT_ONCE = 1_000_000
MOST_BUCKETS = 100
DEVICE = r"auto|cpu|cuda(:(\d+|all))?"
DEVICE_RULE = "must be auto, cpu, cuda, cuda:all, cuda:N, or a list of these"
ORIGIN = re.compile(r"\*|https?://[^\s/*,]+")
SOCKET_MODE = re.compile("0?[0-7]{3}")
COLLECTOR = re.compile(r"https?://[^\s/,]+(/\S*)?")
# The characters of a path (RFC 3986, section 3.3), without escapes.
ROUTE = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@/-]{0,500}")
# Checked one by one, as looking inside a missing package raises.
TRACING_PACKAGES = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter")
GRPC_PACKAGES = ("grpc", "grpc_reflection")
NUMBERS: dict[object, Literal["int_parsing", "float_parsing"]] = {
    int: "int_parsing",
    int | None: "int_parsing",
    float: "float_parsing",
    float | None: "float_parsing",
}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _check_number(cls, value: object, info: ValidationInfo) -> object:
        """YAML's `yes` is not a number, though Python takes it for 1."""
        kind = NUMBERS.get(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, bool) and kind:
            raise PydanticKnownError(kind)
        return value


def _check_spec(spec: str) -> str:
    if not spec.strip():
        raise PydanticCustomError(
            "spec",
            "is empty; write a SPEC such as {spec}, also behind NAME=",
            {"spec": DEFAULT_SPEC},
        )
    return spec


def _check_devices(device: str | list[str]) -> str | list[str]:
    wanted = device if isinstance(device, list) else [device]
    if not wanted or not all(re.fullmatch(DEVICE, name) for name in wanted):
        raise PydanticCustomError("device", DEVICE_RULE)
    return device


def _check_given(path: object) -> object:
    # Python takes it for the current folder.
    if path == "":
        raise PydanticCustomError("path", "must be a path")
    return path


def _check_path(path: Path) -> Path:
    if not str(path).isprintable():
        raise PydanticCustomError("path", "must be a path without control characters")
    return path


def _check_host(host: str) -> str:
    if not host.strip("[] ") or not host.isprintable():
        raise PydanticCustomError("host", "must be an address, a name or unix:PATH")
    path = unix_path(host)
    if path is not None and (problem := path_problem(path)):
        raise PydanticCustomError("path", problem)
    return host


def _check_mode(mode: object) -> object:
    # YAML takes 0660 for the number 432, and nobody could tell.
    if not isinstance(mode, str) or not SOCKET_MODE.fullmatch(mode):
        raise PydanticCustomError("mode", 'must be octal digits in quotes, such as "660"')
    return mode


def _check_bounds(bounds: list[float]) -> list[float]:
    if bounds != sorted(set(bounds)):
        raise PydanticCustomError("bounds", "must rise from each bound to the next")
    return bounds


def _check_origins(origins: list[str]) -> list[str]:
    if not all(map(ORIGIN.fullmatch, origins)):
        raise PydanticCustomError(
            "origin", "must be origins such as https://example.org, without a path, or *"
        )
    return origins


def _check_code(allowed: list[str]) -> list[str]:
    if not all(map(ALLOWED.fullmatch, allowed)):
        raise PydanticCustomError(
            "code", "must be import paths such as package.module:Class or package.module"
        )
    return allowed


def _check_route(route: str | None) -> str | None:
    if route is not None and not ROUTE.fullmatch(route):
        raise PydanticCustomError("route", "must be a path such as /predict")
    # A slash at the end of a request's path changes nothing.
    return route if route is None else route.rstrip("/") or "/"


def _check_grpc(port: int | None) -> int | None:
    if port is not None and not all(map(find_spec, GRPC_PACKAGES)):
        raise PydanticCustomError("extra", f"needs gRPC; {install('grpc')}")
    return port


def _check_tracing(value: bool | str | None) -> bool | str | None:
    if isinstance(value, str) and not COLLECTOR.fullmatch(value):
        raise PydanticCustomError("collector", "must be a URL such as http://localhost:4318")
    if value and not all(map(find_spec, TRACING_PACKAGES)):
        raise PydanticCustomError("extra", f"needs OpenTelemetry; {install('otel')}")
    return value


def _schema(**extra: Any) -> Any:
    return Field(json_schema_extra=extra)


Seconds = Annotated[float, Field(gt=0, le=LONGEST_S)]
Share = Annotated[float, Field(gt=0, lt=1)]
Size = Annotated[int, Field(ge=1, le=MOST_BYTES)]
Count = Annotated[int, Field(ge=1, le=MOST_AT_ONCE)]
ModelName = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=100)]
Spec = Annotated[str, AfterValidator(_check_spec)]
Devices = Annotated[
    str | list[str],
    AfterValidator(_check_devices),
    _schema(pattern=f"^({DEVICE})$", items={"pattern": f"^({DEVICE})$"}),
]
FilePath = Annotated[Path, BeforeValidator(_check_given), AfterValidator(_check_path)]
Host = Annotated[str, AfterValidator(_check_host)]
SocketMode = Annotated[
    str, BeforeValidator(_check_mode), _schema(pattern=f"^{SOCKET_MODE.pattern}$")
]
GrpcPort = Annotated[int | None, Field(ge=0, le=65535), AfterValidator(_check_grpc)]
Code = Annotated[list[str], AfterValidator(_check_code)]
Origins = Annotated[
    list[str],
    AfterValidator(_check_origins),
    _schema(items={"type": "string", "pattern": f"^({ORIGIN.pattern})$"}),
]
Route = Annotated[str | None, AfterValidator(_check_route), _schema(pattern=f"^{ROUTE.pattern}$")]
Tracing = Annotated[bool, AfterValidator(_check_tracing)]
Collector = Annotated[str | None, AfterValidator(_check_tracing)]
Bounds = Annotated[
    list[Annotated[float, Field(gt=0, allow_inf_nan=False)]],
    Field(max_length=MOST_BUCKETS),
    AfterValidator(_check_bounds),
]
