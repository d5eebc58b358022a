"""TorchServe's inference API, with the results of its image classifier.

Source: pytorch.org/serve/inference_api.html. Its management API has a port of its own, and is not
here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.routing import Route

from service.config.settings import Settings
from service.http import instances, platforms, predicting
from service.http.openapi import BINARY, TIMEOUT_HEADER
from service.http.predicting import JSON, Predicted, json_response, model_of_path
from service.http.problems import plain_refusal
from service.http.query import PlainRoute
from service.http.routers import kserve_v1
from service.http.services import services_of
from service.inference.interfaces import Computed
from service.inference.ranking import top_k

PARSE = {JSON: instances.parse}
# Its versions are free text, and 1.0 if nobody chose another.
VERSIONS = ("1.0", "1")
CLASSES = 5
ERROR = {
    "type": "object",
    "required": ["code", "type", "message"],
    "properties": {
        "code": {"type": "integer", "description": "the status"},
        "type": {"type": "string"},
        "message": {"type": "string"},
    },
}

REFUSED: dict[int | str, dict[str, Any]] = {
    status: kserve_v1.ERROR | {"content": {JSON: {"schema": ERROR}}} for status in kserve_v1.REFUSED
}

plain = APIRouter(tags=["TorchServe"])


@plain.post(
    platforms.PREDICTIONS,
    responses=REFUSED,
    openapi_extra={
        "parameters": [TIMEOUT_HEADER],
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": BINARY,
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"data": {"type": "string", "format": "binary"}},
                    }
                },
                JSON: {"schema": kserve_v1.BODY},
            },
        },
    },
)
async def predictions(request: Request, name: str) -> Response:
    """The five most likely labels of an image with their probabilities, as an object: raw bytes of
    any type, a form with one file, or `{"data": TEXT}`. For `{"instances": [...]}` a list;
    `{"parameters": {"top_k": K}}` gives another number of labels."""
    predicted, given = await predicting.predict(request, name, PARSE, predicting.top_k, raw=True)
    k = given or CLASSES
    return await predicted.respond(
        request, k * len(predicted.computed), lambda: results(predicted, k)
    )


def results(predicted: Predicted, k: int) -> bytes:
    counts = Counter(predicted.model.labels)
    objects = [named(computed, k, counts) for computed in predicted.computed]
    return to_json(objects if predicted.asked.field else objects[0])


def named(computed: Computed, k: int, counts: Mapping[str, int]) -> dict[str, float]:
    """Probabilities by label; a label of several classes has the class's number behind it, as an
    object can have a name only once. `counts`: of the classes by label."""
    named: dict[str, float] = {}
    for each in top_k(computed.row, computed.model.labels, k):
        label = each.label
        if counts[label] > 1 or label in named:
            label = f"{label} ({each.class_id})"
        named[label] = each.probability
    return named


async def predictions_of_path(request: Request) -> Response:
    return await predictions(request, model_of_path(request, VERSIONS).name)


@plain.get(platforms.PING, responses={503: {"description": "unhealthy"}})
async def ping(request: Request) -> Response:
    """200 if every model can serve now, else 503; for TorchServe's and SageMaker's clients."""
    healthy = not services_of(request.scope).pipeline.unready()
    status = "Healthy" if healthy else "Unhealthy"
    return json_response({"status": status}, 200 if healthy else 503)


async def management(request: Request) -> Response:
    return plain_refusal(
        request.scope,
        "TorchServe's management API is not served; GET /v1/models lists the models, and "
        "PUT and DELETE /v1/models/NAME change them",
    )


def routes(settings: Settings) -> list[Route]:
    if "torchserve" not in settings.platforms:
        return []
    return [
        PlainRoute(path, predictions_of_path, ["POST", "PUT"], in_json=["top_k"])
        for path in (platforms.PREDICTIONS, f"{platforms.PREDICTIONS}/{{version}}")
    ] + [
        Route(path, management, methods=["GET", "POST", "PUT", "DELETE"])
        for path in ("/models", "/models/{name}")
    ]


def ping_routes(settings: Settings) -> list[Route]:
    """What TorchServe's and SageMaker's clients ask alike."""
    served = platforms.PING in platforms.health_paths(settings)
    return [Route(platforms.PING, ping, methods=["GET"])] if served else []
