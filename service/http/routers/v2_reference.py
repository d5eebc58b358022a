"""What `/openapi.json` says of the Open Inference Protocol; `v2` serves it."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastapi import APIRouter
from pydantic import BaseModel

from service.http.api_document import OPEN_INFERENCE_PROTOCOL
from service.http.openapi import BINARY, REASONS, TIMEOUT_HEADER, TINY, named
from service.http.plain_route import Endpoint
from service.http.routers import v2
from service.http.routers.models import DENIED, Labels
from service.oip import answers, messages
from service.oip.codec import VERSION

RESPONSE = {"model": answers.V2Error}
MALFORMED = "a malformed request or image, or a tensor that does not fit the model"
REFUSED: dict[int, dict[str, Any]] = {
    status: RESPONSE | {"description": str(reason)}
    for status, reason in (
        REASONS | {400: MALFORMED, 403: DENIED[403]["description"], 404: "unknown model or version"}
    ).items()
    if isinstance(status, int)
}
REFUSED[409] = RESPONSE | {"description": "the limit on models is reached, or it is the default"}
OPEN: tuple[int, ...] = ()
KEYED = (401,)
OF_MODEL = (401, 404)
SHOWN = (400, 401, 404)
READ = (400, 401, 408, 413, 415, 429, 503, 504)
CHANGED = (*READ, 403, 404, 409, 422)
INFERRED = (*READ, 404, 422)


def body_of(
    kind: type[BaseModel], examples: dict[str, Any], *, required: bool = True
) -> dict[str, Any]:
    """The request body of a message, with examples by name."""
    schema = named(kind.model_json_schema(ref_template="#/$defs/V2{model}"), "V2")
    definitions = schema.pop("$defs", {})
    title = f"V2{kind.__name__}"
    schema = {
        "$ref": f"#/$defs/{title}",
        "$defs": {**definitions, title: {**schema, "title": title}},
    }
    content = {"schema": schema, "examples": {key: {"value": v} for key, v in examples.items()}}
    return {"requestBody": {"required": required, "content": {"application/json": content}}}


def image_request(**more: Any) -> dict[str, Any]:
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [TINY]}
    return {"inputs": [image], **more}


INFER = body_of(
    messages.InferenceRequest,
    {
        "classes": image_request(
            id="ship-1", outputs=[{"name": "probabilities", "parameters": {"classification": 3}}]
        ),
        "embedding": image_request(outputs=[{"name": "embedding"}]),
    },
)
INFER["requestBody"]["description"] = (
    "JSON, and after it the tensor if `binary_data_size` says so; `Inference-Header-Content-Length`"
    " is then the size of the JSON. With a length of 0 the body is one image file."
)
INFER["requestBody"]["content"]["application/octet-stream"] = BINARY
JSON_LENGTH = {
    "name": v2.JSON_LENGTH,
    "in": "header",
    "description": "bytes of JSON before the binary data; omitted: all of the body is JSON",
    "schema": {"type": "integer", "minimum": 0},
}
INFER["parameters"] = [JSON_LENGTH, TIMEOUT_HEADER]
BINARY_RESPONSE: dict[str, Any] = {
    "content": {"application/octet-stream": BINARY},
    "headers": {
        v2.JSON_LENGTH: {
            "description": "bytes of JSON before the binary data",
            "schema": {"type": "integer"},
        }
    },
}
LABELS = {
    "name": "labels",
    "in": "query",
    "description": Labels.__metadata__[0].description,  # type: ignore[attr-defined]
    "schema": {"type": "boolean"},
}
CHANGE = body_of(
    messages.RepositoryChange,
    {"spec": {"parameters": {"spec": "builtin:resnet20-cifar10"}}},
    required=False,
)


class Described(NamedTuple):
    """An endpoint: its `operationId`, a sentence, the schema of its response, its refusals."""

    id: str
    text: str
    response: Any
    refusals: tuple[int, ...]
    extra: dict[str, Any] = {}  # noqa: RUF012
    success: dict[str, Any] = {}  # noqa: RUF012


def unready(kind: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    return {503: {"model": kind, "description": "no, for the reasons given"}}


ENDPOINTS: dict[Endpoint, Described] = {
    v2.infer: Described(
        "infer",
        "The requested outputs for each image of a request: files (`image`), pixels (`pixels`) or "
        "normalised tensors (`input`).",
        answers.V2InferenceResponse,
        INFERRED,
        INFER,
        BINARY_RESPONSE,
    ),
    v2.server: Described("serverMetadata", "The service's version.", answers.V2Server, KEYED),
    v2.live: Described(
        "isServerLive", "Whether the process can serve or recover.", answers.V2Live, OPEN
    ),
    v2.ready: Described(
        "isServerReady", "Whether every model can serve now.", answers.V2Ready, OPEN
    ),
    v2.all_statistics: Described(
        "statistics", "Counts and durations of all models.", answers.V2Statistics, KEYED
    ),
    v2.model: Described(
        "modelMetadata",
        "A model's inputs and outputs, how images are prepared for them, and its labels.",
        answers.V2ModelMetadata,
        SHOWN,
        {"parameters": [LABELS]},
    ),
    v2.model_ready: Described(
        "isModelReady", "Whether a model can serve now.", answers.V2ModelReady, (*OF_MODEL, 503)
    ),
    v2.configuration: Described(
        "modelConfig",
        "The part of Triton's ModelConfig that applies to a model.",
        answers.V2ModelConfig,
        SHOWN,
        {"parameters": [LABELS]},
    ),
    v2.model_statistics: Described(
        "modelStatistics", "Counts and durations of a model.", answers.V2Statistics, OF_MODEL
    ),
    v2.index: Described(
        "repositoryIndex",
        "The models served, and those configured that are not.",
        list[answers.V2RepositoryModel],
        READ,
        body_of(messages.RepositoryIndex, {"all": {"ready": False}}, required=False),
    ),
    v2.load: Described(
        "loadModel",
        "Loads a model with the given settings; without any, as it is served or configured.",
        dict[str, Any],
        CHANGED,
        CHANGE,
    ),
    v2.unload: Described(
        "unloadModel",
        "Stops serving a model; requests already admitted still complete.",
        dict[str, Any],
        CHANGED,
        body_of(messages.RepositoryChange, {"none": {}}, required=False),
    ),
}
STATES: dict[Endpoint, type[BaseModel]] = {v2.live: answers.V2Live, v2.ready: answers.V2Ready}


def path_parameters(path: str) -> list[dict[str, Any]]:
    schemas = {"name": {"type": "string"}, "version": {"type": "string", "enum": [VERSION]}}
    return [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in schemas.items()
        if f"{{{name}}}" in path
    ]


# FastAPI describes it; the routes are those of `v2`.
plain = APIRouter(tags=[OPEN_INFERENCE_PROTOCOL])
for path, endpoint, method in v2.PATHS:
    described = ENDPOINTS[endpoint]
    responses: dict[int | str, dict[str, Any]] = {200: described.success}
    responses |= {status: REFUSED[status] for status in sorted(described.refusals)}
    responses |= unready(STATES[endpoint]) if endpoint in STATES else {}
    parameters = [*path_parameters(path), *described.extra.get("parameters", [])]
    plain.add_api_route(
        path,
        endpoint,
        methods=[method],
        response_model=described.response,
        responses=responses,
        description=described.text,
        operation_id=described.id + ("OfVersion" if "{version}" in path else ""),
        openapi_extra={**described.extra, "parameters": parameters},
    )
