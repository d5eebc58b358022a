"""The OpenAPI document: what FastAPI describes, with what all operations share said once."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from http import HTTPStatus
from importlib import resources
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.routing import BaseRoute

from service.http.access import is_admin, is_open
from service.http.platforms import PING
from service.http.problems import CONTENT_TYPE

PREDICTIONS, MODELS, OPERATION = "Predictions", "Models", "Operation"
OPEN_INFERENCE_PROTOCOL = "Open Inference Protocol"
PLATFORMS = "Platforms"  # the tag of operations that have none
TAGS = {
    PREDICTIONS: "Images in, classes, features or maps out.",
    MODELS: "What is served, and changes to it.",
    OPEN_INFERENCE_PROTOCOL: "Version 2, with Triton's extensions, for the clients of Triton, "
    "KServe and MLServer. What is below `/v2/models/{name}` is also below "
    "`/v2/models/{name}/versions/1`.",
    PLATFORMS: "The requests of other servers and of managed platforms.",
    OPERATION: "Health and metrics, for orchestrators and Prometheus.",
}
DESCRIPTION = """\
Where keys are configured, send one as `Authorization: Bearer KEY` or `X-API-Key: KEY`.

Every `GET` also answers `HEAD`, every `POST` of one image also `PUT`, and a slash at the end of a
path changes nothing. Under `/v1` an unknown query parameter is refused.

Retry 429 and 503 after the seconds in `Retry-After`, and no other refusal. Every response has the
`X-Request-ID` of its request, or a new one; so has the log.
"""
SERVERS: list[dict[str, Any]] = [
    {"url": ".", "description": "the service that this description is from"},
    {
        "url": "{scheme}://{host}:{port}",
        "description": "a service elsewhere",
        "variables": {
            "scheme": {"default": "http", "enum": ["http", "https"]},
            "host": {"default": "localhost"},
            "port": {"default": "8000"},
        },
    },
]
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
KEYS: list[dict[str, list[str]]] = [{name: []} for name in SCHEMES]
ADMIN = "Needs an admin key (setting `admin_keys`)."
HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-ID": {
        "description": "the request's own, if that is one printable word, else a new one",
        "required": True,
        "schema": {"type": "string"},
    },
    "Server-Timing": {
        "description": "milliseconds of each phase, as browsers show them",
        "schema": {"type": "string"},
        "example": "decode;dur=0.4, queue;dur=0.1, inference;dur=2.5, total;dur=3.4",
    },
    "Retry-After": {
        "description": "seconds after which the same request may succeed",
        "schema": {"type": "integer", "minimum": 1},
    },
}
METHODS = ("get", "put", "post", "delete", "patch")


def of(app: FastAPI, plain: Sequence[BaseRoute], *, keys: bool) -> dict[str, Any]:
    """The description of the application and of the routes `plain`; `keys`: predictions need a
    key."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=DESCRIPTION,
        routes=[*plain, *app.routes],
        servers=SERVERS,
        contact={"name": "The operator of this service"},
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    document["components"]["securitySchemes"] = SCHEMES
    document["components"]["headers"] = HEADERS
    names: set[str] = set()
    for path, method, operation in operations(document):
        operation.setdefault("tags", [PLATFORMS])
        _name(operation, names)
        _secure(operation, path, method, keys=keys)
        _complete(operation)
    _sort(document)
    used = dict.fromkeys(operation["tags"][0] for _, _, operation in operations(document))
    document["tags"] = [
        {"name": tag} | ({"description": TAGS[tag]} if tag in TAGS else {}) for tag in used
    ]
    _share(document, "parameters", _parameters(document))
    _share(document, "responses", _refusals(document))
    definitions: dict[str, Any] = {}
    whole: dict[str, Any] = _hoist(document, definitions)
    whole["components"]["schemas"] |= definitions
    return whole


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and operation of each."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


@cache
def examples() -> dict[str, Any]:
    """The JSON of a response, by operation."""
    text = resources.files("service.http").joinpath("examples.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _sort(document: dict[str, Any]) -> None:
    """Puts the paths in the order of their tags; those that are not known are of platforms."""
    order = {tag: place for place, tag in enumerate(TAGS)}

    def place(path: str) -> int:
        (tag, *_) = next(iter(document["paths"][path].values()))["tags"]
        return order.get(tag, order[PLATFORMS])

    document["paths"] = {
        path: document["paths"][path] for path in sorted(document["paths"], key=place)
    }


def _name(operation: dict[str, Any], names: set[str]) -> None:
    """Names an operation that has no name of its own after its function, and its tag if needed."""
    title = operation.pop("summary", "")  # FastAPI's default, the function's name.
    if "_" in operation["operationId"]:
        words = title.split()
        if _camel(words) in names:
            words += re.findall(r"[A-Za-z0-9]+", operation["tags"][0])
        operation["operationId"] = _camel(words)
    names.add(operation["operationId"])


def _camel(words: Sequence[str]) -> str:
    return "".join([words[0].lower(), *(word.capitalize() for word in words[1:])])


def _secure(operation: dict[str, Any], path: str, method: str, *, keys: bool) -> None:
    if is_admin(path, method.upper()):
        operation["security"] = KEYS
        operation["description"] = f"{operation.get('description', '')} {ADMIN}".strip()
    elif not is_open(path) and path != PING:
        operation["security"] = KEYS if keys else [{}, *KEYS]


def _complete(operation: dict[str, Any]) -> None:
    """Gives responses their headers, media types and examples."""
    for status, response in operation["responses"].items():
        content = response.get("content", {})
        if response["description"] == "Successful Response":  # FastAPI's default
            response["description"] = "success"
        if CONTENT_TYPE in content and "application/json" in content:
            # FastAPI describes every model as application/json.
            content[CONTENT_TYPE] = content.pop("application/json")
        names = ["X-Request-ID"]
        if operation["tags"] == [PREDICTIONS] or (status >= "400" and "security" in operation):
            names.append("Server-Timing")
        if status in ("429", "503"):
            names.append("Retry-After")
        response["headers"] = {
            name: {"$ref": f"#/components/headers/{name}"} for name in names
        } | response.get("headers", {})
        example = examples().get(operation["operationId"].removesuffix("OfVersion"))
        if example is not None and status == "200" and "application/json" in content:
            content["application/json"]["example"] = example


Place = tuple[Any, Any]  # a list or an object, and the index of what is replaced in it


def _parameters(document: dict[str, Any]) -> Iterator[tuple[str, Place]]:
    for _, _, operation in operations(document):
        parameters = operation.get("parameters", [])
        for index, parameter in enumerate(parameters):
            yield parameter["name"], (parameters, index)


def _refusals(document: dict[str, Any]) -> Iterator[tuple[str, Place]]:
    """Those of operations that need a key where there are any, named after the status, and after
    their schema if they are no problem documents."""
    for _, _, operation in operations(document):
        responses = operation["responses"] if "security" in operation else {}
        for status, response in responses.items():
            if status.isdecimal() and status >= "400":
                phrase = HTTPStatus(int(status)).phrase
                form = json.dumps(response.get("content")).partition("schemas/")[2]
                form = form.partition('"')[0].replace("Problem", "").removesuffix("Error")
                yield form + phrase.title().replace(" ", ""), (responses, status)


def _share(document: dict[str, Any], kind: str, found: Iterator[tuple[str, Place]]) -> None:
    """Moves to the components what several operations say alike, and refers to it there."""
    places = [
        (name, json.dumps(where[index], sort_keys=True), where, index)
        for name, (where, index) in found
    ]
    counts = Counter((name, text) for name, text, _, _ in places)
    chosen: dict[str, str] = {}
    for (name, text), count in counts.most_common():
        if count > 1:
            chosen.setdefault(name, text)
    shared = document["components"].setdefault(kind, {})
    for name, text, where, index in places:
        if chosen.get(name) == text:
            shared[name] = json.loads(text)
            where[index] = {"$ref": f"#/components/{kind}/{name}"}


def _hoist(node: Any, schemas: dict[str, Any]) -> Any:
    """The node, with the definitions of its schemas among the document's."""
    if isinstance(node, list):
        return [_hoist(each, schemas) for each in node]
    if not isinstance(node, dict):
        return node
    for name, schema in node.get("$defs", {}).items():
        schemas[name] = _hoist(schema, schemas)
    moved = {key: _hoist(value, schemas) for key, value in [*node.items()] if key != "$defs"}
    reference = moved.get("$ref")
    if isinstance(reference, str):
        moved["$ref"] = reference.replace("#/$defs/", "#/components/schemas/")
    return moved
