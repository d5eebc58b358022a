"""Parts of the OpenAPI description that endpoints share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query

from service.http import api_document, schemas
from service.http.admission import MAX_TIMEOUT_MS
from service.http.platforms import health_paths
from service.http.problems import CONTENT_TYPE

Name = Annotated[
    str | None, Query(description="a model name from GET /v1/models; default: the first")
]
TopK = Annotated[
    int | None,
    Query(description="number of predictions, from 1 to the number of classes; default: 5", ge=1),
]

PROBLEM = {"model": schemas.Problem, "content": {CONTENT_TYPE: {}}}
REASONS: dict[int | str, str] = {
    400: "undecodable or truncated image, or not a valid request",
    401: "missing or unknown key (`Authorization: Bearer KEY`, or `X-API-Key: KEY`)",
    404: "unknown model",
    408: "the headers or the body took too long to arrive",
    413: "body or pixel count over the limit",
    415: "neither the bytes nor the content type are an image's, or an unknown compression",
    422: "a parameter is unknown or out of range, or the model does not support the request",
    429: "the queue is full, or too long for the deadline; `Retry-After` says when to retry",
    431: "request line and headers over the limit",
    503: "loading, shutting down, or the engine is down; with `Retry-After`",
    504: "the deadline passed (`X-Request-Timeout-Ms`)",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: PROBLEM | {"description": reason} for status, reason in REASONS.items()
}
BINARY = {"schema": {"type": "string", "format": "binary"}}
FILE = {"type": "string", "format": "binary"}
BASE64 = {
    "type": "string",
    "description": "base64 of any dialect, or a data URL",
    "contentEncoding": "base64",
}


def form_of(field: dict[str, Any], description: str) -> dict[str, Any]:
    properties = {"image": field | {"description": description}}
    return {"schema": {"type": "object", "required": ["image"], "properties": properties}}


def json_of(name: str, schema: dict[str, Any], example: Any) -> dict[str, Any]:
    """An object with one field."""
    fields = {"type": "object", "required": [name], "properties": {name: schema}}
    return {"schema": fields, "example": {name: example}}


# A PNG of 8 x 8 pixels.
TINY = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAgMAAAC5YVYYAAAACVBMVEXc3NxajDwoWqCPo2H6AAAAHElEQVR42mNcxcDE"
    "wMDEwMCwgIuJgYGZVQ3CBQAafQGO1W+5QQAAAABJRU5ErkJggg=="
)
# Of a body, the first type is the usual one.
ONE_IMAGE = {
    # Generators of clients know no `image/*`.
    "application/octet-stream": BINARY,
    "multipart/form-data": form_of(FILE, "one file; the field may have any name"),
    "application/json": json_of("image", BASE64, TINY),
}
INSTANCE = {"type": "object", "required": ["b64"], "properties": {"b64": BASE64}}
IMAGES = {
    "multipart/form-data": form_of(
        {"type": "array", "items": FILE}, "a file each; the fields may have any name"
    ),
    "application/json": {
        "schema": {
            "oneOf": [
                json_of("images", {"type": "array", "items": BASE64}, None)["schema"],
                json_of("instances", {"type": "array", "items": INSTANCE}, None)["schema"],
            ]
        },
        "examples": {
            "images": {"value": {"images": [TINY, TINY]}},
            "instances": {"value": {"instances": [{"b64": TINY}, {"b64": TINY}]}},
        },
    },
}
TIMEOUT_HEADER = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "description": "milliseconds from the arrival of the request after which the client no longer "
    "wants the response",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_MS},
}


def image_operation(content: dict[str, Any]) -> dict[str, Any]:
    """The request body and headers of an operation that takes images."""
    body = {"required": True, "content": content}
    if content is ONE_IMAGE:
        body["description"] = "Any content type will do: the bytes decide. `PUT` does as `POST`."
    return {"requestBody": body, "parameters": [TIMEOUT_HEADER]}


def named(schema: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A schema made with references to `#/$defs/PREFIX...`, with its definitions named so."""
    definitions = {
        f"{prefix}{name}": {**each, "title": f"{prefix}{name}"}
        for name, each in schema.get("$defs", {}).items()
    }
    return {**schema, "$defs": definitions} if definitions else {**schema}


def describe(app: FastAPI, plain: Sequence[APIRouter]) -> None:
    """Makes `/openapi.json` describe the application, and the endpoints of the routers `plain`,
    which FastAPI does not route."""

    def openapi() -> dict[str, Any]:
        services = app.state.services
        required, health = services.keys.required, health_paths(services.settings)
        if app.openapi_schema is None or described.get("keys") != required:
            described["keys"] = required
            routes = [route for router in plain for route in router.routes]
            app.openapi_schema = api_document.of(app, routes, health, keys=required)
        return app.openapi_schema

    described: dict[str, bool] = {}
    app.openapi = openapi  # type: ignore[method-assign]
