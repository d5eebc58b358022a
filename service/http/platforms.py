"""The paths of other platforms' contracts, as the settings switch them on."""

from __future__ import annotations

import re
from typing import NamedTuple

from service.config.settings import Settings

# KServe V1 and TensorFlow Serving. A model's name never contains a colon.
V1_PREDICT = "/v1/models/{name}:predict"
V1_CLASSIFY = "/v1/models/{name}:classify"
# TorchServe; and what SageMaker asks of it, too.
PREDICTIONS = "/predictions/{name}"
INVOCATIONS = "/invocations"
PING = "/ping"

V1_VERBS = {b"predict": V1_PREDICT, b"classify": V1_CLASSIFY}


class PredictionPaths(NamedTuple):
    """Where predictions are requested, with the routes' templates: `default` of the default model,
    and `named` with the model's name as the only group."""

    default: dict[bytes, str]
    named: list[tuple[re.Pattern[bytes], str]]


def prediction_paths(settings: Settings) -> PredictionPaths:
    paths = PredictionPaths({}, [])
    if "kserve_v1" in settings.platforms:
        paths.named.extend(
            (re.compile(rb"/v1/models/([^/:]+)(?:/versions/1)?:%b/?" % verb), route)
            for verb, route in V1_VERBS.items()
        )
    if "torchserve" in settings.platforms:
        paths.named.append((re.compile(rb"/predictions/([^/]+)(?:/1(?:\.0)?)?/?"), PREDICTIONS))
    if "sagemaker" in settings.platforms:
        paths.default[INVOCATIONS.encode()] = INVOCATIONS
    if (route := vertex_routes(settings)[1]) is not None:
        paths.default[route.encode()] = route
    return paths


def vertex_routes(settings: Settings) -> tuple[str | None, str | None]:
    """Vertex AI's health route and its predict route; None: it has none."""
    if "vertex" not in settings.platforms:
        return None, None
    return settings.vertex_health_route, settings.vertex_predict_route


def health_paths(settings: Settings) -> frozenset[str]:
    """The platforms' health checks, which need no key and are never held."""
    paths = {PING} if {"torchserve", "sagemaker"} & set(settings.platforms) else set()
    health, _ = vertex_routes(settings)
    return frozenset(paths if health is None else paths | {health})
