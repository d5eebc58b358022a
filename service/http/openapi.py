"""Parts of the OpenAPI description that endpoints share."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query
from fastapi.openapi.utils import get_openapi

from service.http import schemas
from service.http.admission import MAX_TIMEOUT_MS
from service.http.problems import CONTENT_TYPE

Name = Annotated[
    str | None, Query(description="a model name from GET /v1/models; default: the first")
]
TopK = Annotated[
    int | None,
    Query(description="number of predictions, from 1 to the number of classes; default: 5", ge=1),
]

PROBLEM = {"model": schemas.Problem, "content": {CONTENT_TYPE: {}}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: PROBLEM | {"description": "undecodable or truncated image"},
    401: PROBLEM | {"description": "missing or unknown key (Authorization: Bearer, or X-API-Key)"},
    404: PROBLEM | {"description": "unknown model"},
    408: PROBLEM | {"description": "the headers or the body took too long to arrive"},
    413: PROBLEM | {"description": "body or pixel count over the limit"},
    415: PROBLEM | {"description": "unsupported content type"},
    422: PROBLEM
    | {"description": "a parameter is out of range, or the model does not support the request"},
    429: PROBLEM
    | {
        "description": "the queue is full, or too long for the deadline; Retry-After "
        "says when to retry"
    },
    431: PROBLEM | {"description": "request line and headers over the limit"},
    503: PROBLEM
    | {"description": "loading, shutting down, or the engine is down; with Retry-After"},
    504: PROBLEM | {"description": "the deadline passed (X-Request-Timeout-Ms)"},
}
BINARY = {"schema": {"type": "string", "format": "binary"}}
FILE = {"type": "string", "format": "binary"}


def form_of(field: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"type": "object", "required": ["image"], "properties": {"image": field}}}


BASE64 = {
    "type": "string",
    "format": "byte",
    "description": "base64 of an image file, or a data URL with it",
}
ONE_IMAGE = {
    "image/*": BINARY,
    "application/octet-stream": BINARY,
    "multipart/form-data": form_of(FILE),
    "application/json": form_of(BASE64),
}
IMAGES = {
    "multipart/form-data": form_of({"type": "array", "items": FILE}),
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["images"],
            "properties": {"images": {"type": "array", "items": BASE64}},
        }
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
    return {"requestBody": body, "parameters": [TIMEOUT_HEADER]}


def describe(app: FastAPI, plain: APIRouter) -> None:
    """Adds the endpoints of `plain`, which FastAPI does not route, to `/openapi.json`."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            routes = [*plain.routes, *app.routes]
            app.openapi_schema = get_openapi(
                title=app.title, version=app.version, summary=app.summary, routes=routes
            )
            _name_problems(app.openapi_schema)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _name_problems(description: dict[str, Any]) -> None:
    """Gives problems their media type: FastAPI describes every model as application/json."""
    operations = [item for path in description["paths"].values() for item in path.values()]
    responses = [response for item in operations for response in item["responses"].values()]
    for response in responses:
        if response["description"] == "Successful Response":  # FastAPI's default
            response["description"] = "success"
        content = response.get("content", {})
        if CONTENT_TYPE in content and "application/json" in content:
            content[CONTENT_TYPE] = content.pop("application/json")
