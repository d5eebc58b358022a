"""SageMaker's contract for containers that host a model.

Source: docs.aws.amazon.com/sagemaker, "Custom Inference Code with Hosting Services". `GET /ping` is
in `service.http.routers.torchserve`.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.routing import Route

from service.config.settings import Settings
from service.errors import InvalidInput
from service.http import instances, platforms, predicting, schemas
from service.http.instances import Instances
from service.http.openapi import BINARY, REFUSALS, TIMEOUT_HEADER
from service.http.predicting import JSON, Predicted, json_field
from service.http.query import PlainRoute
from service.http.routers import kserve_v1
from service.inference.interfaces import Model

LINES = "application/jsonlines"
PARSE = {JSON: instances.parse, LINES: instances.parse_lines}
# Of endpoints with several models, which name the file: of a model NAME it is NAME.tar.gz.
TARGET = "X-Amzn-SageMaker-Target-Model"
CLASSES = 5

plain = APIRouter(tags=["SageMaker"])


@plain.post(
    platforms.INVOCATIONS,
    responses=REFUSALS,
    openapi_extra={
        "parameters": [
            TIMEOUT_HEADER,
            {"name": TARGET, "in": "header", "schema": {"type": "string"}},
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": BINARY,
                JSON: {"schema": kserve_v1.BODY},
            },
        },
    },
)
async def invocations(request: Request) -> Response:
    """For the bytes of an image, what `POST /v1/classify` returns; for `{"instances": [...]}`,
    `{"predictions": [...]}` as in KServe V1. `Accept: application/jsonlines` gives a line each."""
    predicted, k = await predicting.predict(
        request, target(request), PARSE, top_k, raw=True, classifies=False
    )
    lines = LINES in request.headers.get("accept", "")
    return await predicted.respond(
        request,
        predicting.values_of(predicted, k),
        lambda: content(predicted, k, lines=lines),
        LINES if lines else JSON,
    )


def top_k(model: Model, asked: Instances) -> int | None:
    """As `predicting.top_k`; also refuses a single image for a model without classes."""
    k = predicting.top_k(model, asked)
    if not asked.field and not model.labels:
        raise InvalidInput(f"the model {model.name} has no classes; send {instances.DOCUMENT}")
    return k


def target(request: Request) -> str | None:
    """The name of the model; None: the default one."""
    name = request.headers.get(TARGET)
    return None if name is None else name.lstrip("/").removesuffix(".tar.gz")


def content(predicted: Predicted, k: int | None, *, lines: bool) -> bytes:
    if predicted.asked.field:
        rows = predicting.rows(predicted, k)
        return b"".join(row + b"\n" for row in rows) if lines else json_field("predictions", rows)
    (computed,) = predicted.computed
    name, timing = predicted.model.name, schemas.timing_of(computed)
    most = k or min(CLASSES, len(predicted.model.labels))
    one = schemas.classification_json(name, computed, most, timing)
    return one + b"\n" if lines else one


def routes(settings: Settings) -> list[Route]:
    if "sagemaker" not in settings.platforms:
        return []
    return [PlainRoute(platforms.INVOCATIONS, invocations, ["POST"], in_json=["top_k"])]
