"""The Open Inference Protocol V2 over HTTP, with Triton's extensions, for clients that speak it.

Each endpoint is there with and without a slash at its end. The protocol has a description of its
own, so `/openapi.json` leaves it out.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.config.settings import ModelSettings
from service.errors import RETRY_SECONDS, InvalidInput, NotReady, RequestError, UnknownModel
from service.http.admission import TIMEOUT, admit, receive
from service.http.plain_route import Endpoint
from service.http.routers.models import MAX_BODY_BYTES, serving, settings_of_model
from service.http.services import services_of
from service.http.uploads import until_disconnect
from service.http.v2 import codec, encoding, messages, metadata
from service.http.v2.codec import VERSION, Asked, Image
from service.http.v2.statistics import statistics
from service.inference.interfaces import Model
from service.inference.pipeline import Pipeline
from service.inference.ranking import Row

JSON_LENGTH = "Inference-Header-Content-Length"
# Above it, reading a request takes so long that others would notice: it has a thread of its own.
LARGE_BYTES = 2**16
# Of a load request, what is not a setting of the model.
CONFIG = "config"


def json(content: Any, status: int = 200) -> Response:
    return Response(to_json(content), status, media_type="application/json")


def model_of(request: Request) -> Model:
    """Raises `UnknownModel`: there is none of that name, or not in that version."""
    model = services_of(request.scope).pipeline.find(request.path_params["name"])
    version = request.path_params.get("version", VERSION)
    if version != VERSION:
        raise UnknownModel(f"{model.name} has only version {VERSION}")
    return model


async def infer(request: Request) -> Response:
    """The outputs that a request asks for, of each of its images."""
    name = model_of(request).name
    arrived = asyncio.get_running_loop().time()
    admission = admit(request.scope, name, None)
    served, deadline = admission.model, admission.deadline
    limits = admission.services.settings
    with served.users, receive(request, limits.max_batch_body_bytes, deadline) as arriving:
        body = await encoding.read(arriving)
        reading = (body, request.headers.get(JSON_LENGTH), served.input, limits.max_batch_images)
        if len(body) < LARGE_BYTES:
            asked = codec.read(*reading)
        else:
            asked = await asyncio.to_thread(codec.read, *reading)
        del body, reading
        check_outputs(asked, metadata.outputs(served))
        if asked.timeout is not None:
            # Without a header to the same end, it may also allow more time than is usual.
            limit = arrived + asked.timeout
            headed = any(header == TIMEOUT for header, _ in request.scope["headers"])
            deadline = min(deadline, limit) if headed else limit
        work = compute_all(admission.services.pipeline, served, asked, deadline)
        rows = await until_disconnect(request, work)
    content, length = codec.answer(served.name, served.labels, asked, rows)
    headers = {} if length is None else {JSON_LENGTH: str(length)}
    if len(content) >= encoding.WORTHWHILE_BYTES:
        headers["Vary"] = "Accept-Encoding"
        if chosen := encoding.accepted(request.headers.get("accept-encoding")):
            content = await asyncio.to_thread(encoding.deflated, content, chosen)
            headers["Content-Encoding"] = chosen
    media_type = "application/json" if length is None else "application/octet-stream"
    return Response(content, headers=headers, media_type=media_type)


async def compute_all(
    pipeline: Pipeline, served: Model, asked: Asked, deadline: float
) -> list[Row]:
    """What the network makes of each image; the first that fails ends the others."""
    # A large batch takes its turn with the others instead of the whole queue.
    places = asyncio.Semaphore(served.batch_share)

    async def one(number: int, image: Image) -> Row:
        try:
            async with places:
                computed = await pipeline.compute(
                    served, image, deadline, asked.task, asked.priority
                )
        except RequestError as error:
            if len(asked.images) == 1:
                raise
            raise type(error)(f"image {number} of {len(asked.images)}: {error}") from None
        return computed.row

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*each)) for each in enumerate(asked.images, 1)]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def check_outputs(asked: Asked, known: dict[str, int]) -> None:
    """Raises `InvalidInput`: an output is not known, or is named twice."""
    names = [output.name for output in asked.outputs]
    for name in names:
        if name not in known:
            raise InvalidInput(f"outputs: no output is called {name!r}; see {', '.join(known)}")
        if names.count(name) > 1:
            raise InvalidInput(f"outputs: {name} is requested twice")


async def server(request: Request) -> Response:
    return json(metadata.server())


async def live(request: Request) -> Response:
    return health("live", services_of(request.scope).pipeline.repository.dead())


async def ready(request: Request) -> Response:
    return health("ready", services_of(request.scope).pipeline.unready())


def health(what: str, reasons: dict[str, str]) -> Response:
    if not reasons:
        return json({what: True})
    said = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return json({what: False, "error": said}, 503)


async def model(request: Request) -> Response:
    return json(metadata.metadata(model_of(request)))


async def model_ready(request: Request) -> Response:
    name = model_of(request).name
    reason = services_of(request.scope).pipeline.unready().get(name)
    if reason is not None:
        raise NotReady(f"{name} is not ready: {reason}", RETRY_SECONDS)
    return json({"name": name, "ready": True})


async def configuration(request: Request) -> Response:
    return json(metadata.configuration(model_of(request), services_of(request.scope).settings))


async def model_statistics(request: Request) -> Response:
    return told_of(request, [model_of(request).name])


async def all_statistics(request: Request) -> Response:
    return told_of(request, list(services_of(request.scope).pipeline.models))


def told_of(request: Request, names: list[str]) -> Response:
    counted = services_of(request.scope).pipeline.metrics.counted()
    return json({"model_stats": [statistics(name, counted.get(name, {})) for name in names]})


async def index(request: Request) -> Response:
    asked = await small(request, messages.RepositoryIndex)
    pipeline, settings = services_of(request.scope).pipeline, services_of(request.scope).settings
    return json(metadata.index(pipeline, settings, only_ready=asked.ready))


async def load(request: Request) -> Response:
    """Loads a model as the parameters say; without any, as it is served now or configured."""
    pipeline = serving(request)
    name = request.path_params["name"]
    asked = await small(request, messages.RepositoryChange)
    await pipeline.repository.put(row_of(request, name, asked.parameters))
    return json({})


def row_of(request: Request, name: str, parameters: dict[str, Any]) -> ModelSettings:
    """The settings of a model that is to be loaded.

    Raises:
        InvalidInput: a parameter cannot be.
        BadParameter: a setting is unknown or has an impossible value.
        UnknownModel: nothing tells what to load.
    """
    if any(key.startswith("file:") for key in parameters):
        raise InvalidInput("file: is not supported; name a bundle with spec, such as builtin:NAME")
    fields = {key: value for key, value in parameters.items() if key != CONFIG}
    if CONFIG in parameters:
        try:
            given = from_json(parameters[CONFIG], allow_inf_nan=False)
        except (TypeError, ValueError):
            given = None
        if not isinstance(given, dict):
            raise InvalidInput(
                'config: must be a JSON object in a string, such as {"spec": "builtin:NAME"}'
            )
        fields = given | fields
    fields = {key: value for key, value in fields.items() if key != "name" or value != name}
    if fields:
        return settings_of_model(name, fields)
    served = services_of(request.scope).pipeline.models.get(name)
    rows = services_of(request.scope).settings.models
    row = served.settings if served else next((r for r in rows if name_of(r) == name), None)
    if row is None:
        raise UnknownModel(
            f"{name} is not configured; give spec in the parameters, or config with "
            'a JSON object such as {"spec": "builtin:NAME"}'
        )
    return row.model_copy(update={"name": name})


def name_of(row: ModelSettings) -> str:
    """What a configured model is called, as far as that is known without its bundle."""
    return row.name or Path(row.spec.rpartition(":")[2]).stem


async def unload(request: Request) -> Response:
    pipeline = serving(request)
    await small(request, messages.RepositoryChange)
    await pipeline.repository.delete(request.path_params["name"])
    return json({})


async def small(request: Request, kind: type[messages.M]) -> messages.M:
    """A request's JSON, whatever type it says to have; none at all is an empty object."""
    within = services_of(request.scope).settings.request_timeout_ms / 1000
    deadline = asyncio.get_running_loop().time() + within
    with receive(request, MAX_BODY_BYTES, deadline) as arriving:
        body = await encoding.read(arriving)
    return messages.parse(kind, body or b"{}")


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
ROUTES = [
    Route(f"{path}{slash}", endpoint, methods=[method])
    for path, endpoint, method in PATHS
    for slash in ("", "/")
]
