"""The Open Inference Protocol V2 over HTTP, with Triton's extensions.

`v2_reference` describes it for `/openapi.json`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.config.settings import ModelSettings
from service.errors import (
    QUOTED,
    RETRY_SECONDS,
    InvalidInput,
    NotReady,
    UnknownModel,
)
from service.http import encoding
from service.http.admission import TIMEOUT, admit, open_body
from service.http.admitted import AdmittedInference
from service.http.plain_route import Endpoint
from service.http.problems import refusal_response
from service.http.record import record_of
from service.http.routers.models import MAX_BODY_BYTES, active_pipeline, settings_of_model
from service.http.services import Services, services_of
from service.http.uploads import until_disconnect
from service.inference.deadline import before
from service.inference.interfaces import Model
from service.inference.labels import shown_labels
from service.oip import codec, messages, metadata
from service.oip.codec import VERSION
from service.oip.statistics import statistics

JSON_LENGTH = "Inference-Header-Content-Length"
# Larger requests are parsed in a thread, as parsing them would block the event loop.
LARGE_BYTES = 2**15
# The one parameter of a load request that is not a setting of the model.
CONFIG = "config"


def json_response(content: Any, status: int = 200) -> Response:
    return Response(to_json(content), status, media_type="application/json")


def model_of(request: Request) -> Model:
    """Raises `UnknownModel`: unknown name or version."""
    model = services_of(request.scope).pipeline.find(request.path_params["name"])
    metadata.check_version(model, request.path_params.get("version", VERSION))
    return model


async def infer(request: Request) -> Response:
    """The requested outputs for each image of a request."""
    name = model_of(request).name
    age = time.perf_counter() - record_of(request.scope).started
    arrived = asyncio.get_running_loop().time() - age
    admission = admit(request.scope, name, None)
    serving, services = admission.model, admission.services
    most = services.settings.max_batch_body_bytes
    with serving.users, open_body(request, most, admission.deadline) as upload:
        json_length = request.headers.get(JSON_LENGTH)
        source = (json_length, serving.input, services.settings.max_batch_images)
        body = await encoding.read(upload, partial(codec.max_inflated, *source))
        if len(body) < LARGE_BYTES:
            parsed = codec.read(body, *source)
        else:
            async with before(admission.deadline):
                work = services.lane.run(codec.read, body, *source)
                parsed = await until_disconnect(request, work)
        del body
        headers = request.scope["headers"]
        # Without the header, the parameter may also exceed the default timeout.
        chosen = any(header == TIMEOUT for header, _ in headers)
        inference = AdmittedInference(admission, record_of(request.scope), headers, arrived, chosen)
        parsed, computing = inference.begin(parsed)
        rows = await until_disconnect(request, computing)
    content, length = await inference.format(parsed, rows, codec.encode_response)
    told = {} if length is None else {JSON_LENGTH: str(length)}
    if len(content) >= encoding.MIN_COMPRESSED_BYTES:
        told["Vary"] = "Accept-Encoding"
        if coding := encoding.negotiate(request.headers.get("accept-encoding")):
            content = await services.lane.run(encoding.compress, content, coding)
            told["Content-Encoding"] = coding
    media_type = "application/json" if length is None else "application/octet-stream"
    return Response(content, headers=told, media_type=media_type)


async def server(request: Request) -> Response:
    return json_response(metadata.server())


async def live(request: Request) -> Response:
    return health("live", services_of(request.scope).pipeline.repository.dead())


async def ready(request: Request) -> Response:
    return health("ready", services_of(request.scope).pipeline.unready())


def health(state: str, reasons: dict[str, str]) -> Response:
    if not reasons:
        return json_response({state: True})
    error = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return json_response({state: False, "error": error}, 503)


async def model(request: Request) -> Response:
    served, labels = model_of(request), labels_of(request)
    return await services_of(request.scope).format(
        len(labels or ()), lambda: json_response(metadata.metadata(served, labels))
    )


def labels_of(request: Request) -> Sequence[str] | None:
    """The labels that a description of the model shows; `?labels=true` and `false` override.

    Raises:
        InvalidInput: `labels` is neither.
    """
    given = request.query_params.get("labels")
    if given not in (None, "true", "false"):
        raise InvalidInput(f"labels must be true or false, not {given[:QUOTED]!r}")
    return shown_labels(model_of(request).labels, None if given is None else given == "true")


async def model_ready(request: Request) -> Response:
    name = model_of(request).name
    reason = services_of(request.scope).pipeline.unready().get(name)
    if reason is not None:
        # Not a refusal of an image: whoever asks often must not burn the error budget.
        unready = NotReady(f"{name} is not ready: {reason}", RETRY_SECONDS)
        return refusal_response(request.scope["path"], unready)
    return json_response({"name": name, "ready": True})


async def configuration(request: Request) -> Response:
    served, labels, services = model_of(request), labels_of(request), services_of(request.scope)
    return await services.format(
        len(labels or ()),
        lambda: json_response(metadata.configuration(served, services.settings, labels)),
    )


async def model_statistics(request: Request) -> Response:
    return await statistics_of(request, [model_of(request).name])


async def all_statistics(request: Request) -> Response:
    return await statistics_of(request, list(services_of(request.scope).pipeline.models))


async def statistics_of(request: Request, names: list[str]) -> Response:
    counted = await services_of(request.scope).exposition.counted()
    return json_response(
        {"model_stats": [statistics(name, counted.get(name, {})) for name in names]}
    )


async def index(request: Request) -> Response:
    message = await read_message(request, messages.RepositoryIndex)
    pipeline, settings = services_of(request.scope).pipeline, services_of(request.scope).settings
    return json_response(metadata.index(pipeline, settings, only_ready=message.ready))


async def load(request: Request) -> Response:
    """Loads a model with the given parameters; by default, as it is served or configured now."""
    pipeline = active_pipeline(services_of(request.scope))
    name = request.path_params["name"]
    message = await read_message(request, messages.RepositoryChange)
    lane = services_of(request.scope).lane
    await pipeline.repository.put(
        await lane.run(settings_to_load, services_of(request.scope), name, message.parameters)
    )
    return json_response({})


def settings_to_load(services: Services, name: str, parameters: dict[str, Any]) -> ModelSettings:
    """The settings of the model to load.

    Raises:
        InvalidInput: a parameter is invalid.
        BadParameter: a setting is unknown or invalid.
        UnknownModel: neither the parameters nor the configuration define it.
    """
    if any(key.startswith("file:") for key in parameters):
        raise InvalidInput("file: is not supported; name a bundle with spec, such as builtin:NAME")
    fields = {key: value for key, value in parameters.items() if key != CONFIG}
    if CONFIG in parameters:
        try:
            config = from_json(parameters[CONFIG], allow_inf_nan=False)
        except (TypeError, ValueError):
            config = None
        if not isinstance(config, dict):
            raise InvalidInput(
                'config: must be a JSON object in a string, such as {"spec": "builtin:NAME"}'
            )
        fields = config | fields
    fields = {key: value for key, value in fields.items() if key != "name" or value != name}
    if fields:
        return settings_of_model(services, name, fields)
    model = services.pipeline.models.get(name)
    configured = services.settings.models
    settings = (
        model.settings if model else next((m for m in configured if name_of(m) == name), None)
    )
    if settings is None:
        raise UnknownModel(
            f"{name} is not configured; give spec in the parameters, or config with "
            'a JSON object such as {"spec": "builtin:NAME"}'
        )
    return settings.model_copy(update={"name": name})


def name_of(settings: ModelSettings) -> str:
    """A configured model's name, as far as known without reading its bundle."""
    return settings.name or Path(settings.spec.rpartition(":")[2]).stem


async def unload(request: Request) -> Response:
    pipeline = active_pipeline(services_of(request.scope))
    await read_message(request, messages.RepositoryChange)
    await pipeline.repository.delete(request.path_params["name"])
    return json_response({})


async def read_message(request: Request, kind: type[messages.M]) -> messages.M:
    """A request's JSON, whatever its content type; an empty body means an empty object."""
    within = services_of(request.scope).settings.request_timeout_ms / 1000
    deadline = asyncio.get_running_loop().time() + within
    with open_body(request, MAX_BODY_BYTES, deadline) as body:
        text = await encoding.read(body)
    return messages.parse(kind, text or b"{}")


MODEL = "/v2/models/{name}"
PATHS: list[tuple[str, Endpoint, str]] = [
    *((f"{base}/infer", infer, "POST") for base in (MODEL, f"{MODEL}/versions/{{version}}")),
    ("/v2", server, "GET"),
    ("/v2/health/live", live, "GET"),
    ("/v2/health/ready", ready, "GET"),
    ("/v2/models/stats", all_statistics, "GET"),
    *(
        (f"{base}{tail}", endpoint, "GET")
        for base in (MODEL, f"{MODEL}/versions/{{version}}")
        for tail, endpoint in (
            ("", model),
            ("/ready", model_ready),
            ("/config", configuration),
            ("/stats", model_statistics),
        )
    ),
    ("/v2/repository/index", index, "POST"),
    ("/v2/repository/models/{name}/load", load, "POST"),
    ("/v2/repository/models/{name}/unload", unload, "POST"),
]
ROUTES = [Route(path, endpoint, methods=[method]) for path, endpoint, method in PATHS]
